// The TensorRTs that are in this process already: nothing is linked, all is looked up.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

namespace turbotrt {

// The plugin registries of the host program's own TensorRT, or, where it keeps that to itself, of every one loaded.
std::vector<nvinfer1::IPluginRegistry*> host_registries();

// TensorRT's logger in this process, or null.
nvinfer1::ILogger* host_logger();

// Whether one of TensorRT's own functions is waiting for this thread's work: it loads the library itself then.
bool called_by_tensorrt();

}  // namespace turbotrt
