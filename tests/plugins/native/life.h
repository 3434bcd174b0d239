// A plugin's life as TensorRT leads it, and what it showed of it.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "library.h"

namespace life {

using Shapes = std::vector<nvinfer1::Dims>;

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
