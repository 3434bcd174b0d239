// A plugin's life as TensorRT leads it, and what it showed of it.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace life {

using Shapes = std::vector<nvinfer1::Dims>;

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

// A plugin as the builder has it: made from its plan, and cloned.
class Life {
 public:
  // Throws std::runtime_error where the library makes none.
  Life(Library const& library, std::string op, std::string data);

  // All that it answers for inputs of these shapes, as JSON: types, formats, output shapes, workspace; then serialized,
  // rebuilt, attached, and run.
  std::string answers(Shapes const& shapes) const;

  // "equal", or what was not: threads that attach, run and drop plugins in many contexts, each with shapes of its own.
  std::string threads(std::vector<Shapes> const& cases, int count, int rounds) const;

 private:
  std::unique_ptr<nvinfer1::IPluginV3> attached() const;
  std::string serialized() const;

  Library const& library_;
  std::string op_;
  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

// Allocations and locks of this thread, counted from ``count(true)`` to ``count(false)``.
struct Counts {
  long allocations, locks;
};
Counts counted();
void count(bool on);

}  // namespace life
