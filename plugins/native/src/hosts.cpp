#include "hosts.h"

#include <dlfcn.h>
#include <link.h>
#include <unwind.h>

#include <cstring>
#include <string>

namespace turbotrt {

namespace {

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

template <typename Result>
Result call(void* library, char const* name, Result otherwise) {
  auto* const function = reinterpret_cast<Result (*)()>(dlsym(library, name));
  return function != nullptr ? function() : otherwise;
}

// The TensorRT in a library, or in the global scope.
std::optional<Host> host_in(void* library) {
  std::optional<Form> const form = form_of(call<int32_t>(library, "getInferLibVersion", 0));
  if (!form) {
    return std::nullopt;
  }
  Host host{std::nullopt, std::nullopt, *form};
  if (void* const registry = call<void*>(library, "getPluginRegistry", nullptr)) {
    host.registry = Registry{*form, registry};
  }
  if (void* const logger = call<void*>(library, "getLogger", nullptr)) {
    host.logger = Logger{*form, logger};
  }
  return host;
}

std::optional<Host> host_at(std::string const& path) {
  void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) {
    return std::nullopt;
  }
  std::optional<Host> const host = host_in(library);
  dlclose(library);
  return host;
}

int collect(dl_phdr_info* info, size_t, void* found) {
  if (info->dlpi_name != nullptr && is_tensorrt(info->dlpi_name)) {
    static_cast<std::vector<std::string>*>(found)->emplace_back(info->dlpi_name);
  }
  return 0;
}

_Unwind_Reason_Code look(_Unwind_Context* context, void* found) {
  Dl_info info{};
  auto* const address = reinterpret_cast<void*>(_Unwind_GetIP(context));
  if (dladdr(address, &info) != 0 && info.dli_fname != nullptr && is_tensorrt(info.dli_fname)) {
    *static_cast<std::string*>(found) = info.dli_fname;
    return _URC_END_OF_STACK;
  }
  return _URC_NO_REASON;
}

}  // namespace

std::vector<Host> hosts() {
  if (std::optional<Host> const own = host_in(RTLD_DEFAULT)) {
    return {*own};
  }
  std::vector<std::string> paths;
  dl_iterate_phdr(collect, &paths);
  std::vector<Host> found;
  for (std::string const& path : paths) {
    if (std::optional<Host> const host = host_at(path)) {
      found.push_back(*host);
    }
  }
  return found;
}

std::optional<Host> calling_host() {
  std::string path;
  _Unwind_Backtrace(look, &path);
  return path.empty() ? std::nullopt : host_at(path);
}

}  // namespace turbotrt
