// The one plugin class: what TensorRT asks of it is answered from its launch plan.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>

#include "launcher.h"

namespace turbotrt {

class PlanPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
 public:
  PlanPlugin(std::shared_ptr<SharedPlan> plan, std::string name_space);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  char const* getPluginName() const noexcept override { return op_.c_str(); }
  char const* getPluginVersion() const noexcept override { return TURBOTRT_PLUGIN_VERSION; }
  char const* getPluginNamespace() const noexcept override { return name_space_.c_str(); }

  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs, nvinfer1::DataType const* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs const* shape_inputs,
                          int32_t shape_count, nvinfer1::DimsExprs* out, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* in_out, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(plan_.outputs.size()); }
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) const noexcept override;
  char const* getTimingCacheID() noexcept override { return ""; }

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs, nvinfer1::PluginTensorDesc const* out,
                        int32_t outputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                  void const* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &fields_; }

 private:
  void check_counts(int32_t inputs, int32_t outputs) const;
  int64_t workspace_bytes(nvinfer1::DynamicPluginTensorDesc const* in) const;

  std::shared_ptr<SharedPlan> shared_;
  Plan const& plan_;
  std::string op_, name_space_;
  nvinfer1::PluginField field_;
  nvinfer1::PluginFieldCollection fields_;
  Launcher launcher_;
};

}  // namespace turbotrt
