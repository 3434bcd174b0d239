#include "plugin.h"

#include "log.h"
#include "refusal.h"

namespace turbotrt {

namespace {

using nvinfer1::DimensionOperation;
using nvinfer1::IDimensionExpr;

constexpr int32_t kDone = 0, kFailed = -1;

DimensionOperation operation_of(Operator op) {
  switch (op) {
#define TURBOTRT_CASE(text, name, operation) \
  case Operator::name:                       \
    return DimensionOperation::operation;
    TURBOTRT_OPERATORS(TURBOTRT_CASE)
#undef TURBOTRT_CASE
  }
  throw Refusal("an operator that there is not");
}

IDimensionExpr const* dimension(Expr const& expr, Plan const& plan, nvinfer1::DimsExprs const* in,
                                nvinfer1::IExprBuilder& builder) {
  auto const given = [](IDimensionExpr const* made) {
    if (made == nullptr) {
      throw Refusal("TensorRT made no shape expression");
    }
    return made;
  };
  return expr.fold<IDimensionExpr const*>(
      [&](int64_t value) { return given(builder.constant(value)); },
      [&](size_t symbol) { return given(in[plan.sources[symbol].input].d[plan.sources[symbol].axis]); },
      [&](Operator op, IDimensionExpr const* a, IDimensionExpr const* b) {
        return given(builder.operation(operation_of(op), *a, *b));
      });
}

nvinfer1::Dims const& dims_of(nvinfer1::DynamicPluginTensorDesc const& tensor) { return tensor.max; }

}  // namespace

PlanPlugin::PlanPlugin(std::shared_ptr<SharedPlan> plan, std::string name_space)
    : shared_(std::move(plan)),
      plan_(shared_->plan()),
      op_(plan_.op),
      name_space_(std::move(name_space)),
      field_(TURBOTRT_PLAN_FIELD, plan_.data.data(), nvinfer1::PluginFieldType::kCHAR,
             static_cast<int32_t>(plan_.data.size())),
      fields_{1, &field_},
      launcher_(shared_) {}

nvinfer1::IPluginCapability* PlanPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* PlanPlugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(op_, nullptr, [&] { return new PlanPlugin(shared_, name_space_); });
}

void PlanPlugin::check_counts(int32_t inputs, int32_t outputs) const {
  if (inputs != static_cast<int32_t>(plan_.inputs.size()) || outputs != static_cast<int32_t>(plan_.outputs.size())) {
    throw Refusal("a node of " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                  " outputs; its plan has " + std::to_string(plan_.inputs.size()) + " and " +
                  std::to_string(plan_.outputs.size()));
  }
}

int64_t PlanPlugin::workspace_bytes(nvinfer1::DynamicPluginTensorDesc const* in) const {
  std::vector<int64_t> symbols(plan_.symbols.size()), offsets(plan_.slots());
  plan_.bind([in](size_t input) -> nvinfer1::Dims const& { return dims_of(in[input]); }, symbols);
  return plan_.workspace(symbols, offsets);
}

// TensorRT asks for the workspace where it can be told of no failure: what would fail there fails here before.
int32_t PlanPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                                    nvinfer1::DynamicPluginTensorDesc const*, int32_t outputs) noexcept {
  return guarded(op_, kFailed, [&] {
    check_counts(inputs, outputs);
    workspace_bytes(in);
    return kDone;
  });
}

int32_t PlanPlugin::getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs, nvinfer1::DataType const*,
                                       int32_t inputs) const noexcept {
  return guarded(op_, kFailed, [&] {
    check_counts(inputs, outputs);
    for (size_t i = 0; i < plan_.outputs.size(); ++i) {
      types[i] = plan_.outputs[i].dtype.type;
    }
    return kDone;
  });
}

int32_t PlanPlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs const*, int32_t,
                                    nvinfer1::DimsExprs* out, int32_t outputs,
                                    nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(op_, kFailed, [&] {
    check_counts(inputs, outputs);
    for (size_t i = 0; i < plan_.inputs.size(); ++i) {
      if (in[i].nbDims != static_cast<int32_t>(plan_.inputs[i].shape.size())) {
        throw Refusal(std::string(plan_.inputs[i].name) + " has " + std::to_string(in[i].nbDims) +
                      " dimensions, this plan wants " + std::to_string(plan_.inputs[i].shape.size()));
      }
    }
    for (size_t i = 0; i < plan_.outputs.size(); ++i) {
      std::vector<Expr> const& shape = plan_.outputs[i].shape;
      out[i].nbDims = static_cast<int32_t>(shape.size());
      for (size_t axis = 0; axis < shape.size(); ++axis) {
        out[i].d[axis] = dimension(shape[axis], plan_, in, builder);
      }
    }
    return kDone;
  });
}

bool PlanPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* in_out,
                                           int32_t inputs, int32_t outputs) noexcept {
  return guarded(op_, false, [&] {
    check_counts(inputs, outputs);
    size_t const at = static_cast<size_t>(position), first_output = plan_.inputs.size();
    TensorSpec const& spec = at < first_output ? plan_.inputs.at(at) : plan_.outputs.at(at - first_output);
    nvinfer1::PluginTensorDesc const& tensor = in_out[at].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == spec.dtype.type;
  });
}

size_t PlanPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                                    nvinfer1::DynamicPluginTensorDesc const*, int32_t outputs) const noexcept {
  return guarded(op_, size_t{0}, [&] {
    check_counts(inputs, outputs);
    return static_cast<size_t>(workspace_bytes(in));
  });
}

int32_t PlanPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                                  nvinfer1::PluginTensorDesc const*, int32_t outputs) noexcept {
  return guarded(op_, kFailed, [&] {
    check_counts(inputs, outputs);
    launcher_.resolve(in);
    return kDone;
  });
}

int32_t PlanPlugin::enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const*,
                            void const* const* inputs, void* const* outputs, void* workspace,
                            cudaStream_t stream) noexcept {
  return guarded(op_, kFailed, [&] {
    if (!launcher_.is_loaded()) {
      launcher_.load();
    }
    if (!launcher_.is_resolved(in)) {
      launcher_.resolve(in);
    }
    launcher_.enqueue(inputs, outputs, workspace, stream);
    return kDone;
  });
}

// Kernels are loaded here, so that the first step does not wait for it; a builder without a GPU has no context, and
// needs none.
nvinfer1::IPluginV3* PlanPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded<nvinfer1::IPluginV3*>(op_, nullptr, [&] {
    auto attached = std::make_unique<PlanPlugin>(shared_, name_space_);
    if (has_context()) {
      attached->launcher_.load();
    }
    return attached.release();
  });
}

}  // namespace turbotrt
