// The CUDA driver, found when it is first needed: the library itself loads where there is none, to build engines.
#pragma once

#include <cuda.h>

#include <string>

namespace turbotrt {

// The functions of libcuda.so.1 that launches need; there from CUDA 12.0 on, but for the last.
struct Driver {
  decltype(&cuGetErrorName) get_error_name;
  decltype(&cuCtxGetCurrent) ctx_get_current;
  decltype(&cuCtxGetId) ctx_get_id;
  decltype(&cuCtxGetDevice) ctx_get_device;
  decltype(&cuLibraryLoadData) library_load_data;
  decltype(&cuLibraryUnload) library_unload;
  decltype(&cuLibraryGetKernel) library_get_kernel;
  decltype(&cuKernelSetAttribute) kernel_set_attribute;
  decltype(&cuKernelGetFunction) kernel_get_function;
  decltype(&cuLaunchKernel) launch_kernel;
  decltype(&cuKernelGetParamInfo) kernel_get_param_info;  // null before CUDA 12.4

  // The driver. Throws Refusal where this machine has none, or one that is too old.
  static Driver const& get();
  // The driver, or null.
  static Driver const* find() noexcept;

  // Throws Refusal that says what failed, unless the status is a success.
  void check(CUresult status, std::string const& what) const;
};

}  // namespace turbotrt
