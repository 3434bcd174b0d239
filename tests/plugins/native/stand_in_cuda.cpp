// A CUDA driver that loads cubins as far as their tables go and writes launches down. Only what the library calls.
#include "stand_in_cuda.h"

#include <elf.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

constexpr size_t kMaxLaunches = 256;
constexpr uint8_t kParameter = 0x17;  // EIATTR_KPARAM_INFO of .nv.info.<kernel>

struct Kernel {
  std::string name;
  uint64_t cubin;
  std::vector<std::pair<size_t, size_t>> parameters;  // offset, size
  unsigned opted = 0;
};

struct Function {
  Kernel* kernel;
  uint64_t context;
};

struct Library {
  std::map<std::string, Kernel> kernels;
  std::map<uint64_t, Function> functions;
};

std::mutex mutex;
std::atomic<int> loaded{0}, loads{0};
std::atomic<char const*> failing{nullptr};
thread_local uint64_t context = 1;
thread_local stand_in::Launch launches[kMaxLaunches];
thread_local size_t launch_count = 0;

bool fails(char const* function) {
  char const* const name = failing.load();
  return name != nullptr && std::strcmp(name, function) == 0;
}

template <typename T>
T at(char const* file, uint64_t offset) {
  T found;
  std::memcpy(&found, file + offset, sizeof(T));
  return found;
}

// The parameters that a section .nv.info.<kernel> lists: entries of format, attribute and a size or a value of 16 bits.
std::vector<std::pair<size_t, size_t>> parameters_in(char const* section, uint64_t size) {
  std::map<uint16_t, std::pair<size_t, size_t>> found;
  for (uint64_t i = 0; i + 4 <= size;) {
    bool const sized = section[i] == 4;
    uint16_t const length = sized ? at<uint16_t>(section, i + 2) : 0;
    if (sized && static_cast<uint8_t>(section[i + 1]) == kParameter) {
      found[at<uint16_t>(section, i + 8)] = {at<uint16_t>(section, i + 10), at<uint32_t>(section, i + 12) >> 18};
    }
    i += 4u + length;
  }
  std::vector<std::pair<size_t, size_t>> parameters;
  for (auto const& [ordinal, parameter] : found) {
    parameters.push_back(parameter);
  }
  return parameters;
}

// The kernels of a cubin, by its sections' names. As with the real driver nobody says where it ends.
void read_kernels(char const* file, Library& library) {
  auto const header = at<Elf64_Ehdr>(file, 0);
  auto const section = [&](uint64_t index) {
    return at<Elf64_Shdr>(file, header.e_shoff + index * sizeof(Elf64_Shdr));
  };
  uint64_t end = header.e_shoff + header.e_shnum * sizeof(Elf64_Shdr);
  Elf64_Shdr const names = section(header.e_shstrndx);
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    end = section(i).sh_type == SHT_NOBITS ? end : std::max(end, section(i).sh_offset + section(i).sh_size);
  }
  end = std::max(end, header.e_phoff + header.e_phnum * sizeof(Elf64_Phdr));
  uint64_t hash = 14695981039346656037u;
  for (uint64_t i = 0; i < end; ++i) {
    hash = (hash ^ static_cast<uint8_t>(file[i])) * 1099511628211u;
  }
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    std::string const name = file + names.sh_offset + section(i).sh_name;
    std::string const prefix = ".nv.info.";
    if (name.compare(0, prefix.size(), prefix) == 0) {
      Kernel kernel;
      kernel.name = name.substr(prefix.size());
      kernel.cubin = hash;
      kernel.parameters = parameters_in(file + section(i).sh_offset, section(i).sh_size);
      library.kernels[kernel.name] = kernel;
    }
  }
}

}  // namespace

extern "C" {

void stand_in_context(uint64_t number) { context = number; }
int stand_in_loaded() { return loaded; }
int stand_in_loads() { return loads; }
void stand_in_fail(char const* function) { failing = function; }

int stand_in_launches(stand_in::Launch const** found) {
  *found = launches;
  int const count = static_cast<int>(launch_count);
  launch_count = 0;
  return count;
}

CUresult cuGetErrorName(CUresult, char const** name) {
  *name = "CUDA_ERROR_STAND_IN";
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* found) {
  *found = reinterpret_cast<CUcontext>(context);
  return fails("cuCtxGetCurrent") ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext given, unsigned long long* number) {
  *number = reinterpret_cast<uint64_t>(given);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(CUlibrary* library, void const* code, CUjit_option*, void**, unsigned, CUlibraryOption*,
                           void**, unsigned) {
  if (fails("cuLibraryLoadData")) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  auto* const made = new Library;
  read_kernels(static_cast<char const*>(code), *made);
  *library = reinterpret_cast<CUlibrary>(made);
  ++loaded;
  ++loads;
  return CUDA_SUCCESS;
}

CUresult cuLibraryUnload(CUlibrary library) {
  delete reinterpret_cast<Library*>(library);
  --loaded;
  return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, char const* name) {
  auto& kernels = reinterpret_cast<Library*>(library)->kernels;
  auto const found = kernels.find(name);
  if (found == kernels.end() || fails("cuLibraryGetKernel")) {
    return CUDA_ERROR_NOT_FOUND;
  }
  *kernel = reinterpret_cast<CUkernel>(&found->second);
  return CUDA_SUCCESS;
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || fails("cuKernelSetAttribute")) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  reinterpret_cast<Kernel*>(kernel)->opted = static_cast<unsigned>(value);
  return CUDA_SUCCESS;
}

// A function is a kernel in the context that was current; they live as long as the process.
CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  if (fails("cuKernelGetFunction")) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  static std::vector<Function*>* const all = new std::vector<Function*>;
  std::lock_guard<std::mutex> const held(mutex);
  all->push_back(new Function{reinterpret_cast<Kernel*>(kernel), context});
  *function = reinterpret_cast<CUfunction>(all->back());
  return CUDA_SUCCESS;
}

CUresult cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* size) {
  auto const& parameters = reinterpret_cast<Kernel*>(kernel)->parameters;
  if (index >= parameters.size()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *offset = parameters[index].first;
  *size = parameters[index].second;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction given, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                        unsigned block_z, unsigned shared, CUstream stream, void** arguments, void**) {
  auto const& function = *reinterpret_cast<Function*>(given);
  Kernel const& kernel = *function.kernel;
  if (fails("cuLaunchKernel") || launch_count == kMaxLaunches) {
    return CUDA_ERROR_LAUNCH_FAILED;
  }
  stand_in::Launch& launch = launches[launch_count++];
  launch = {};
  std::strncpy(launch.name, kernel.name.c_str(), sizeof(launch.name) - 1);
  launch.cubin = kernel.cubin;
  launch.context = function.context;
  unsigned const grid[] = {x, y, z}, block[] = {block_x, block_y, block_z};
  std::memcpy(launch.grid, grid, sizeof(grid));
  std::memcpy(launch.block, block, sizeof(block));
  launch.shared = shared;
  launch.opted = kernel.opted;
  launch.stream = reinterpret_cast<uint64_t>(stream);
  launch.count = static_cast<int>(kernel.parameters.size());
  for (int i = 0; i < launch.count; ++i) {
    launch.sizes[i] = static_cast<int>(kernel.parameters[static_cast<size_t>(i)].second);
    std::memcpy(&launch.values[i], arguments[i], static_cast<size_t>(launch.sizes[i]));
  }
  return CUDA_SUCCESS;
}

}  // extern "C"
