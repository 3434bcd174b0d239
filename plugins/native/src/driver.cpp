#include "driver.h"

#include <dlfcn.h>

#include "refusal.h"

namespace turbotrt {

namespace {

template <typename Function>
bool look_up(void* library, char const* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

struct Found {
  Driver driver{};
  std::string missing;  // empty: the driver is whole
};

Found load() {
  Found found;
  Driver& driver = found.driver;
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // never closed: kernels stay loaded
  if (library == nullptr) {
    found.missing = "libcuda.so.1: there is no CUDA driver";
    return found;
  }
  auto const need = [&](char const* name, auto& function) {
    if (!look_up(library, name, function) && found.missing.empty()) {
      found.missing = std::string(name) + " in libcuda.so.1: the CUDA driver is older than 12.0";
    }
  };
  need("cuGetErrorName", driver.get_error_name);
  need("cuCtxGetCurrent", driver.ctx_get_current);
  need("cuCtxGetId", driver.ctx_get_id);
  need("cuCtxGetDevice", driver.ctx_get_device);
  need("cuLibraryLoadData", driver.library_load_data);
  need("cuLibraryUnload", driver.library_unload);
  need("cuLibraryGetKernel", driver.library_get_kernel);
  need("cuKernelSetAttribute", driver.kernel_set_attribute);
  need("cuKernelGetFunction", driver.kernel_get_function);
  need("cuLaunchKernel", driver.launch_kernel);
  look_up(library, "cuKernelGetParamInfo", driver.kernel_get_param_info);
  return found;
}

Found const& found_driver() {
  static Found const* const found = new Found(load());  // never freed: plugins may outlive what is static
  return *found;
}

}  // namespace

Driver const& Driver::get() {
  Found const& found = found_driver();
  if (!found.missing.empty()) {
    throw Refusal("there is no " + found.missing);
  }
  return found.driver;
}

Driver const* Driver::find() noexcept {
  try {
    return found_driver().missing.empty() ? &found_driver().driver : nullptr;
  } catch (...) {  // no memory
    return nullptr;
  }
}

void Driver::check(CUresult status, std::string const& what) const {
  if (status == CUDA_SUCCESS) {
    return;
  }
  char const* name = nullptr;
  if (get_error_name(status, &name) != CUDA_SUCCESS || name == nullptr) {
    name = "an error that the driver has no name for";
  }
  throw Refusal(what + ": " + name + " (" + std::to_string(static_cast<int>(status)) + ")");
}

}  // namespace turbotrt
