#include "hosts.h"

#include <dlfcn.h>
#include <link.h>
#include <unwind.h>

#include <cstring>
#include <string>

namespace turbotrt {

namespace {

constexpr char const* kRegistry = "getPluginRegistry";
constexpr char const* kLogger = "getLogger";

// How the files are called that hold a TensorRT; "lib" and what follows the name are left out.
constexpr char const* kLibraries[] = {"nvinfer.so", "nvinfer_lean.so", "nvinfer_dispatch.so", "tensorrt_rtx.so"};

bool is_tensorrt(char const* path) {
  char const* const slash = std::strrchr(path, '/');
  char const* const file = slash != nullptr ? slash + 1 : path;
  if (std::strncmp(file, "lib", 3) != 0) {
    return false;
  }
  for (char const* name : kLibraries) {
    if (std::strncmp(file + 3, name, std::strlen(name)) == 0) {
      return true;
    }
  }
  return false;
}

int collect(dl_phdr_info* info, size_t, void* found) {
  if (info->dlpi_name != nullptr && is_tensorrt(info->dlpi_name)) {
    static_cast<std::vector<std::string>*>(found)->emplace_back(info->dlpi_name);
  }
  return 0;
}

// The function of this name in the global scope, else in each TensorRT that is loaded.
std::vector<void*> functions(char const* name) {
  if (void* const global = dlsym(RTLD_DEFAULT, name)) {
    return {global};
  }
  std::vector<std::string> paths;
  dl_iterate_phdr(collect, &paths);
  std::vector<void*> found;
  for (std::string const& path : paths) {
    void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) {
      continue;
    }
    if (void* const function = dlsym(library, name)) {
      found.push_back(function);
    }
    dlclose(library);
  }
  return found;
}

_Unwind_Reason_Code look(_Unwind_Context* context, void* found) {
  Dl_info info{};
  auto* const address = reinterpret_cast<void*>(_Unwind_GetIP(context));
  if (dladdr(address, &info) != 0 && info.dli_fname != nullptr && is_tensorrt(info.dli_fname)) {
    *static_cast<bool*>(found) = true;
    return _URC_END_OF_STACK;
  }
  return _URC_NO_REASON;
}

}  // namespace

std::vector<nvinfer1::IPluginRegistry*> host_registries() {
  std::vector<nvinfer1::IPluginRegistry*> registries;
  for (void* const function : functions(kRegistry)) {
    if (auto* const registry = reinterpret_cast<decltype(&getPluginRegistry)>(function)()) {
      registries.push_back(registry);
    }
  }
  return registries;
}

nvinfer1::ILogger* host_logger() {
  for (void* const function : functions(kLogger)) {
    if (auto* const logger = reinterpret_cast<decltype(&getLogger)>(function)()) {
      return logger;
    }
  }
  return nullptr;
}

bool called_by_tensorrt() {
  bool found = false;
  _Unwind_Backtrace(look, &found);
  return found;
}

}  // namespace turbotrt
