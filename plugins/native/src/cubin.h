// The driver is told where a cubin begins and not where it ends: what it may read is checked before.
#pragma once

#include <string>
#include <string_view>

namespace turbotrt {

// Throws Refusal unless these are an ELF file's bytes whose tables and sections lie within them.
void check_cubin(std::string_view cubin, std::string const& name);

}  // namespace turbotrt
