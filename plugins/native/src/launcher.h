// A plan's launches in one execution context: resolved when shapes change, then only filled with addresses.
#pragma once

#include <NvInferRuntime.h>
#include <cuda.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace turbotrt {

// Belongs to one plugin, which one thread uses at a time. After its construction and loading nothing is allocated or
// locked: all places are there before.
class Launcher {
 public:
  explicit Launcher(std::shared_ptr<SharedPlan> plan);
  Launcher(Launcher const&) = delete;
  Launcher& operator=(Launcher const&) = delete;

  // Loads the kernels into the current context, once. Throws Refusal.
  void load();
  bool is_loaded() const { return kernels_ != nullptr; }

  // Computes all launches for these input shapes. Throws Refusal where the plan is not for them.
  void resolve(nvinfer1::PluginTensorDesc const* inputs);
  // Whether the launches are those for these input shapes.
  bool is_resolved(nvinfer1::PluginTensorDesc const* inputs) const;

  // Enqueues the launches. Throws Refusal where the driver does not take one.
  void enqueue(void const* const* inputs, void* const* outputs, void* workspace, CUstream stream);

 private:
  // One launch for the shapes at hand; arguments are places in slots_ and values_.
  struct Resolved {
    CUfunction function;
    std::array<unsigned, 3> grid;
    unsigned threads, shared;
    size_t first;  // of its arguments in pointers_
  };

  void resolve_launch(LaunchSpec const& spec, Resolved& launch);

  std::shared_ptr<SharedPlan> shared_;
  Plan const& plan_;
  std::shared_ptr<Kernels const> kernels_;
  bool resolved_ = false;
  std::vector<int64_t> symbols_, offsets_;
  std::vector<Resolved> launches_;
  std::vector<CUdeviceptr> slots_;  // addresses of inputs, outputs and the workspace's slots
  std::vector<int32_t> values_;     // of all launches' arguments that are numbers, and unused ones between
  std::vector<void*> pointers_;     // what the driver reads arguments by, launch after launch
  CUdeviceptr profile_scratch_ = 0;
};

}  // namespace turbotrt
