#include "creator.h"

#include <string_view>

#include "facts.h"
#include "log.h"
#include "plugin.h"
#include "refusal.h"

namespace turbotrt {

namespace {

// The plan's bytes among a node's fields. Throws Refusal.
std::string plan_of(nvinfer1::PluginFieldCollection const* fields) {
  nvinfer1::PluginField const* found = nullptr;
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    nvinfer1::PluginField const& field = fields->fields[i];
    if (field.name != nullptr && std::string_view(field.name) == TURBOTRT_PLAN_FIELD) {
      found = &field;
    }
  }
  if (found == nullptr || found->data == nullptr || found->length < 0 ||
      found->type != nvinfer1::PluginFieldType::kCHAR) {
    throw Refusal("it carries no launch plan");
  }
  return std::string(static_cast<char const*>(found->data), static_cast<size_t>(found->length));
}

}  // namespace

PlanCreator::PlanCreator(std::string op, std::string name_space)
    : op_(std::move(op)),
      name_space_(std::move(name_space)),
      field_(TURBOTRT_PLAN_FIELD, nullptr, nvinfer1::PluginFieldType::kCHAR, 0),
      fields_{1, &field_} {}

char const* PlanCreator::getPluginVersion() const noexcept { return TURBOTRT_PLUGIN_VERSION; }

nvinfer1::IPluginV3* PlanCreator::createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                               nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(op_, nullptr, [&] {
    try {
      std::shared_ptr<SharedPlan> plan = SharedPlan::of(plan_of(fields));
      if (plan->plan().op != op_) {
        throw Refusal("its plan is for " + std::string(plan->plan().op));
      }
      return new PlanPlugin(std::move(plan), name_space_);
    } catch (Refusal const& refusal) {
      throw Refusal("node '" + std::string(name != nullptr ? name : "") + "': " + refusal.what());
    }
  });
}

}  // namespace turbotrt
