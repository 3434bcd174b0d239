#include "kernels.h"

#include <functional>
#include <unordered_map>

#include "cubin.h"
#include "refusal.h"

namespace turbotrt {

namespace {

// All plans that plugins hold, by a hash of their bytes.
struct Plans {
  std::mutex mutex;
  std::unordered_multimap<size_t, std::weak_ptr<SharedPlan>> plans;
};

Plans& all_plans() {
  static Plans* const plans = new Plans;  // never freed: plugins may outlive what is static
  return *plans;
}

CUcontext current_context(Driver const& driver) {
  CUcontext context = nullptr;
  driver.check(driver.ctx_get_current(&context), "looking for the current CUDA context");
  if (context == nullptr) {
    throw Refusal("no CUDA context is current");
  }
  return context;
}

}  // namespace

bool has_context() noexcept {
  Driver const* const driver = Driver::find();
  CUcontext context = nullptr;
  return driver != nullptr && driver->ctx_get_current(&context) == CUDA_SUCCESS && context != nullptr;
}

Kernels::Kernels(Plan const& plan) : driver_(Driver::get()) {
  try {
    for (KernelImage const& image : plan.kernels) {
      load(image);
    }
    for (LaunchSpec const& launch : plan.launches) {
      check_parameters(plan, launch);
    }
  } catch (...) {
    unload();
    throw;
  }
}

Kernels::~Kernels() { unload(); }

void Kernels::unload() noexcept {
  for (CUlibrary const library : libraries_) {
    driver_.library_unload(library);  // fails where the driver was shut down before, and then nothing is loaded
  }
  libraries_.clear();
}

void Kernels::load(KernelImage const& image) {
  libraries_.reserve(libraries_.size() + 1);
  CUlibrary library = nullptr;
  CUkernel kernel = nullptr;
  CUfunction function = nullptr;
  std::string const name = "kernel " + image.name;
  check_cubin(image.cubin, name);
  driver_.check(driver_.library_load_data(&library, image.cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
                "loading " + name);
  libraries_.push_back(library);
  driver_.check(driver_.library_get_kernel(&kernel, library, image.name.c_str()), "finding " + name);
  if (image.shared > kStaticSharedLimit) {
    CUdevice device = 0;
    driver_.check(driver_.ctx_get_device(&device), "looking for the current CUDA device");
    driver_.check(driver_.kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                               static_cast<int>(image.shared), kernel, device),
                  "giving " + name + " " + std::to_string(image.shared) + " bytes of shared memory");
  }
  driver_.check(driver_.kernel_get_function(&function, kernel), "loading " + name + " into the current CUDA context");
  kernels_.push_back(kernel);
  functions_.push_back(function);
}

// The driver reads as many arguments as the kernel has, of the sizes that it has: a plan that gives others would have it
// read beyond them.
void Kernels::check_parameters(Plan const& plan, LaunchSpec const& launch) const {
  if (driver_.kernel_get_param_info == nullptr) {
    return;
  }
  size_t offset = 0, size = 0, index = 0;
  while (driver_.kernel_get_param_info(kernels_[launch.kernel], index, &offset, &size) == CUDA_SUCCESS) {
    bool const given = index < launch.args.size() + kTrailing;
    bool const pointer = !given || index >= launch.args.size() || launch.args[index].is_tensor;
    if (!given || size != (pointer ? sizeof(CUdeviceptr) : sizeof(int32_t))) {
      throw Refusal("parameter " + std::to_string(index) + " of kernel " + plan.kernels[launch.kernel].name + " has " +
                    std::to_string(size) + " bytes, which the plan does not give");
    }
    ++index;
  }
}

std::shared_ptr<Kernels const> SharedPlan::kernels() {
  Driver const& driver = Driver::get();
  unsigned long long number = 0;
  driver.check(driver.ctx_get_id(current_context(driver), &number), "numbering the current CUDA context");
  std::lock_guard<std::mutex> const held(mutex_);
  std::weak_ptr<Kernels const>& place = loaded_[number];
  std::shared_ptr<Kernels const> found = place.lock();
  if (found == nullptr) {
    found = std::make_shared<Kernels const>(*plan_);
    place = found;
  }
  return found;
}

std::shared_ptr<SharedPlan> SharedPlan::of(std::string data) {
  Plans& all = all_plans();
  size_t const hash = std::hash<std::string>()(data);
  std::lock_guard<std::mutex> const held(all.mutex);
  for (auto at = all.plans.begin(); at != all.plans.end();) {
    std::shared_ptr<SharedPlan> const shared = at->second.lock();
    if (shared != nullptr && at->first == hash && shared->plan().data == data) {
      return shared;
    }
    at = shared == nullptr ? all.plans.erase(at) : std::next(at);
  }
  auto made = std::make_shared<SharedPlan>(Plan::decode(std::move(data)));
  all.plans.emplace(hash, made);
  return made;
}

}  // namespace turbotrt
