// Makes plugins of one op from the plan in their only field.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace turbotrt {

class PlanCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  PlanCreator(std::string op, std::string name_space);

  nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
  char const* getPluginName() const noexcept override { return op_.c_str(); }
  char const* getPluginVersion() const noexcept override;
  char const* getPluginNamespace() const noexcept override { return name_space_.c_str(); }

 private:
  std::string op_, name_space_;
  nvinfer1::PluginField field_;
  nvinfer1::PluginFieldCollection fields_;
};

}  // namespace turbotrt
