// The library as a host program opens it.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace life {

// What the library exports.
struct Library {
  explicit Library(char const* path);

  // The creator of an op. Throws std::runtime_error.
  nvinfer1::IPluginCreatorV3One& creator(std::string const& op) const;
  // A plugin from these bytes in a field of this name and type, or null.
  std::unique_ptr<nvinfer1::IPluginV3> create(std::string const& op, std::string const& data,
                                              nvinfer1::TensorRTPhase phase, char const* field = "plan",
                                              nvinfer1::PluginFieldType type = nvinfer1::PluginFieldType::kCHAR) const;

  nvinfer1::IPluginCreatorInterface* const* (*get_creators)(int32_t&);
  void (*set_logger_finder)(void*);
  bool (*init)(void*, char const*);
  char const* (*version)();
};

// The parts of a plugin that TensorRT asks when it builds an engine, and when it runs one.
nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3& plugin);
nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin);

// The bytes in the one field that a plugin serializes. Throws std::runtime_error.
std::string serialized(nvinfer1::IPluginV3& plugin);

// What an engine makes of a plugin when it is loaded and gets a context: rebuilt from what was serialized (TensorRT
// appends a NUL to a field of characters), then attached; null where that fails. Throws std::runtime_error.
std::unique_ptr<nvinfer1::IPluginV3> attached(Library const& library, std::string const& op,
                                              nvinfer1::IPluginV3& plugin);

}  // namespace life
