#include "cubin.h"

#include <elf.h>

#include <cstring>

#include "refusal.h"

namespace turbotrt {

namespace {

bool within(uint64_t offset, uint64_t count, uint64_t size, uint64_t whole) {
  return offset <= whole && (size == 0 || count <= (whole - offset) / size);
}

template <typename Entry>
Entry entry(std::string_view file, uint64_t table, uint64_t index) {
  Entry found{};
  std::memcpy(&found, file.data() + table + index * sizeof(Entry), sizeof(Entry));
  return found;
}

bool is_whole(std::string_view file) {
  Elf64_Ehdr header{};
  if (file.size() < sizeof(header)) {
    return false;
  }
  std::memcpy(&header, file.data(), sizeof(header));
  bool const known = std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_ident[EI_CLASS] == ELFCLASS64 &&
                     header.e_ident[EI_DATA] == ELFDATA2LSB;
  if (!known || !within(header.e_shoff, header.e_shnum, sizeof(Elf64_Shdr), file.size()) ||
      !within(header.e_phoff, header.e_phnum, sizeof(Elf64_Phdr), file.size())) {
    return false;
  }
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    auto const section = entry<Elf64_Shdr>(file, header.e_shoff, i);
    if (section.sh_type != SHT_NOBITS && !within(section.sh_offset, section.sh_size, 1, file.size())) {
      return false;
    }
  }
  return true;
}

}  // namespace

void check_cubin(std::string_view cubin, std::string const& name) {
  if (!is_whole(cubin)) {
    throw Refusal(name + " is no whole cubin");
  }
}

}  // namespace turbotrt
