// The TensorRTs that are in this process already: nothing is linked, all is looked up.
#pragma once

#include <optional>
#include <vector>

#include "abi.h"

namespace turbotrt {

// One TensorRT; its global registry and that registry's logger, where it has them.
struct Host {
  std::optional<Registry> registry;
  std::optional<Logger> logger;
  Form form;
};

// The TensorRT that the program itself is linked to, or, where it keeps that to itself, every one loaded.
std::vector<Host> hosts();

// The TensorRT one of whose functions is waiting for this thread's work, or none: where it loads the library, it does.
std::optional<Host> calling_host();

}  // namespace turbotrt
