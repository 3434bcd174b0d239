// A plan's kernels in a CUDA context, loaded once for all plugins that run them there.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "driver.h"
#include "plan.h"

namespace turbotrt {

// The kernels loaded in the context that was current; unloaded with the last plugin that holds them.
class Kernels {
 public:
  // Throws Refusal where the driver does not take them.
  explicit Kernels(Plan const& plan);
  ~Kernels();
  Kernels(Kernels const&) = delete;
  Kernels& operator=(Kernels const&) = delete;

  CUfunction operator[](size_t kernel) const { return functions_[kernel]; }

 private:
  void load(KernelImage const& image);
  void unload() noexcept;
  void check_parameters(Plan const& plan, LaunchSpec const& launch) const;

  Driver const& driver_;
  std::vector<CUlibrary> libraries_;
  std::vector<CUkernel> kernels_;
  std::vector<CUfunction> functions_;
};

// A plan, and its kernels by the contexts in which plugins run them.
class SharedPlan {
 public:
  explicit SharedPlan(std::shared_ptr<Plan const> plan) : plan_(std::move(plan)) {}

  Plan const& plan() const { return *plan_; }
  // The kernels in the current context. Throws Refusal where none is current or the driver does not take them.
  std::shared_ptr<Kernels const> kernels();

  // The plan of these bytes, one for all plugins that are made of the same. Throws Refusal.
  static std::shared_ptr<SharedPlan> of(std::string data);

 private:
  std::shared_ptr<Plan const> plan_;
  std::mutex mutex_;
  std::map<unsigned long long, std::weak_ptr<Kernels const>> loaded_;  // by the context's number, never given twice
};

// Whether a CUDA context is current in this thread.
bool has_context() noexcept;

}  // namespace turbotrt
