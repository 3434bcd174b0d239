#include "launcher.h"

#include <algorithm>
#include <limits>
#include <string>

#include "refusal.h"

namespace turbotrt {

namespace {

constexpr int64_t kWarp = 32;
constexpr std::array<int64_t, 3> kMaxGrid = {2147483647, 65535, 65535};  // of every SM there is

}  // namespace

Launcher::Launcher(std::shared_ptr<SharedPlan> plan) : shared_(std::move(plan)), plan_(shared_->plan()) {
  size_t arguments = 0;
  for (LaunchSpec const& launch : plan_.launches) {
    arguments += launch.args.size() + kTrailing;
  }
  symbols_.resize(plan_.symbols.size());
  offsets_.resize(plan_.slots());
  launches_.resize(plan_.launches.size());
  slots_.resize(plan_.inputs.size() + plan_.outputs.size() + std::max<size_t>(1, plan_.slots()));
  values_.resize(arguments);
  pointers_.resize(arguments);
  size_t at = 0;
  for (size_t i = 0; i < launches_.size(); ++i) {
    launches_[i].first = at;
    for (Argument const& argument : plan_.launches[i].args) {
      pointers_[at] = argument.is_tensor ? static_cast<void*>(&slots_[argument.tensor]) : &values_[at];
      ++at;
    }
    pointers_[at++] = &slots_.back();  // global scratch is the workspace's last slot; the executor in Python has it so
    pointers_[at++] = &profile_scratch_;
  }
}

void Launcher::load() {
  if (kernels_ == nullptr) {
    kernels_ = shared_->kernels();
    for (size_t i = 0; i < launches_.size(); ++i) {
      launches_[i].function = (*kernels_)[plan_.launches[i].kernel];
    }
  }
}

bool Launcher::is_resolved(nvinfer1::PluginTensorDesc const* inputs) const {
  bool same = resolved_;
  for (size_t i = 0; same && i < plan_.sources.size(); ++i) {
    SymbolSource const& source = plan_.sources[i];
    same = inputs[source.input].dims.d[source.axis] == symbols_[i];
  }
  return same;
}

void Launcher::resolve(nvinfer1::PluginTensorDesc const* inputs) {
  resolved_ = false;
  plan_.bind([inputs](size_t input) -> nvinfer1::Dims const& { return inputs[input].dims; }, symbols_);
  plan_.workspace(symbols_, offsets_);
  for (size_t i = 0; i < launches_.size(); ++i) {
    resolve_launch(plan_.launches[i], launches_[i]);
  }
  resolved_ = true;
}

void Launcher::resolve_launch(LaunchSpec const& spec, Resolved& launch) {
  KernelImage const& image = plan_.kernels[spec.kernel];
  for (size_t i = 0; i < 3; ++i) {
    int64_t const extent = evaluated(spec.grid[i], symbols_);
    if (extent < 1 || extent > kMaxGrid[i]) {
      throw Refusal("kernel " + image.name + " with a grid of " + std::to_string(extent));
    }
    launch.grid[i] = static_cast<unsigned>(extent);
  }
  launch.threads = static_cast<unsigned>(kWarp * image.num_warps);
  launch.shared = static_cast<unsigned>(image.shared);
  for (size_t i = 0; i < spec.args.size(); ++i) {
    if (spec.args[i].is_tensor) {
      continue;
    }
    int64_t const value = evaluated(spec.args[i].value, symbols_);
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      throw Refusal("kernel " + image.name + " with the number " + std::to_string(value) + ", which has 32 bits");
    }
    values_[launch.first + i] = static_cast<int32_t>(value);
  }
}

void Launcher::enqueue(void const* const* inputs, void* const* outputs, void* workspace, CUstream stream) {
  size_t slot = 0;
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    slots_[slot++] = reinterpret_cast<CUdeviceptr>(inputs[i]);
  }
  for (size_t i = 0; i < plan_.outputs.size(); ++i) {
    slots_[slot++] = reinterpret_cast<CUdeviceptr>(outputs[i]);
  }
  CUdeviceptr const base = reinterpret_cast<CUdeviceptr>(workspace);
  slots_[slot] = base;  // where the plan has no workspace, kernels get its address all the same
  for (int64_t const offset : offsets_) {
    slots_[slot++] = base + static_cast<CUdeviceptr>(offset);
  }
  Driver const& driver = Driver::get();
  for (Resolved const& launch : launches_) {
    CUresult const status =
        driver.launch_kernel(launch.function, launch.grid[0], launch.grid[1], launch.grid[2], launch.threads, 1, 1,
                             launch.shared, stream, &pointers_[launch.first], nullptr);
    if (status != CUDA_SUCCESS) {
      size_t const index = static_cast<size_t>(&launch - launches_.data());
      driver.check(status, "launching kernel " + plan_.kernels[plan_.launches[index].kernel].name);
    }
  }
}

}  // namespace turbotrt
