#include "life.h"

#include <cstdint>
#include <stdexcept>
#include <thread>

#include "host.h"
#include "stand_in_cuda.h"

namespace life {

namespace {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::IPluginV3OneBuild;
using nvinfer1::IPluginV3OneCore;
using nvinfer1::IPluginV3OneRuntime;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kMaxTensors = 64;

void* made_up(uint64_t number) { return reinterpret_cast<void*>(number << 32); }

template <typename Numbers>
std::string list(Numbers const& numbers, size_t count) {
  std::string text = "[";
  for (size_t i = 0; i < count; ++i) {
    text += (i != 0 ? "," : "") + std::to_string(static_cast<long long>(numbers[i]));
  }
  return text + "]";
}

std::string text_of(stand_in::Launch const& launch) {
  std::string text = "{\"name\":\"" + std::string(launch.name) + "\",\"cubin\":" + std::to_string(launch.cubin);
  text += ",\"grid\":" + list(launch.grid, 3) + ",\"block\":" + list(launch.block, 3);
  text += ",\"shared\":" + std::to_string(launch.shared) + ",\"opted\":" + std::to_string(launch.opted);
  text += ",\"stream\":" + std::to_string(launch.stream) + ",\"context\":" + std::to_string(launch.context);
  text += ",\"sizes\":" + list(launch.sizes, static_cast<size_t>(launch.count));
  return text + ",\"values\":" + list(launch.values, static_cast<size_t>(launch.count)) + "}";
}

std::vector<PluginTensorDesc> described(Shapes const& shapes) {
  std::vector<PluginTensorDesc> found;
  for (nvinfer1::Dims const& dims : shapes) {
    found.push_back({dims, nvinfer1::DataType::kFLOAT, nvinfer1::TensorFormat::kLINEAR, 0});
  }
  found.resize(kMaxTensors);
  return found;
}

// Inputs, outputs and workspace at addresses that a reader of the record knows.
int32_t enqueue(IPluginV3& plugin, Shapes const& shapes) {
  std::vector<PluginTensorDesc> const inputs = described(shapes);
  void const* given[kMaxTensors];
  void* taken[kMaxTensors];
  for (uint64_t i = 0; i < kMaxTensors; ++i) {
    given[i] = made_up(i + 1);
    taken[i] = made_up(i + 101);
  }
  IPluginV3OneRuntime& part = runtime(plugin);
  count(true);
  int32_t const status =
      part.enqueue(inputs.data(), nullptr, given, taken, made_up(1001), static_cast<cudaStream_t>(made_up(7)));
  count(false);
  return status;
}

int32_t change(IPluginV3& plugin, Shapes const& shapes) {
  std::vector<PluginTensorDesc> const inputs = described(shapes);
  return runtime(plugin).onShapeChange(inputs.data(), static_cast<int32_t>(shapes.size()), nullptr,
                                       build(plugin).getNbOutputs());
}

std::string launches() {
  stand_in::Launch const* found = nullptr;
  int const number = stand_in_launches(&found);
  std::string text = "[";
  for (int i = 0; i < number; ++i) {
    text += (i != 0 ? "," : "") + text_of(found[i]);
  }
  return text + "]";
}

// Which types an input or output is taken in, in the linear format; "x" where another format is taken.
std::string formats(IPluginV3OneBuild& part, Shapes const& shapes, int32_t position) {
  int32_t const inputs = static_cast<int32_t>(shapes.size()), outputs = part.getNbOutputs();
  std::vector<DynamicPluginTensorDesc> tensors(kMaxTensors);
  std::string text;
  for (int32_t type = 0; type < 12; ++type) {
    tensors[static_cast<size_t>(position)].desc.type = static_cast<nvinfer1::DataType>(type);
    tensors[static_cast<size_t>(position)].desc.format = nvinfer1::TensorFormat::kLINEAR;
    if (part.supportsFormatCombination(position, tensors.data(), inputs, outputs)) {
      text += (text.empty() ? "" : ",") + std::to_string(type);
    }
    tensors[static_cast<size_t>(position)].desc.format = nvinfer1::TensorFormat::kCHW32;
    text += part.supportsFormatCombination(position, tensors.data(), inputs, outputs) ? "x" : "";
  }
  return "[" + text + "]";
}

std::string output_types(IPluginV3OneBuild& part, Shapes const& shapes) {
  int32_t const inputs = static_cast<int32_t>(shapes.size()), outputs = part.getNbOutputs();
  nvinfer1::DataType types[kMaxTensors] = {};
  part.getOutputDataTypes(types, outputs, types, inputs);
  std::string text = list(types, static_cast<size_t>(outputs)) + ",\"formats\":[";
  for (int32_t position = 0; position < inputs + outputs; ++position) {
    text += (position != 0 ? "," : "") + formats(part, shapes, position);
  }
  return text + "]";
}

std::string output_shapes(IPluginV3OneBuild& part, Shapes const& shapes) {
  host::Builder builder;
  std::vector<nvinfer1::DimsExprs> in, out(static_cast<size_t>(part.getNbOutputs()));
  for (nvinfer1::Dims const& dims : shapes) {
    nvinfer1::DimsExprs made{dims.nbDims, {}};
    for (int32_t i = 0; i < dims.nbDims; ++i) {
      made.d[i] = builder.make(dims.d[i]);
    }
    in.push_back(made);
  }
  int32_t const status = part.getOutputShapes(in.data(), static_cast<int32_t>(in.size()), nullptr, 0, out.data(),
                                              static_cast<int32_t>(out.size()), builder);
  std::string text = "[";
  for (size_t i = 0; status == 0 && i < out.size(); ++i) {
    int64_t dims[nvinfer1::Dims::MAX_DIMS] = {};
    for (int32_t axis = 0; axis < out[i].nbDims; ++axis) {
      dims[axis] = out[i].d[axis]->getConstantValue();
    }
    text += (i != 0 ? "," : "") + list(dims, static_cast<size_t>(out[i].nbDims));
  }
  return text + "],\"operations\":" + list(builder.operations, builder.operations.size());
}

std::string configured(IPluginV3OneBuild& part, Shapes const& shapes) {
  std::vector<DynamicPluginTensorDesc> in;
  for (PluginTensorDesc const& desc : described(shapes)) {
    in.push_back({desc, desc.dims, desc.dims, desc.dims});
  }
  int32_t const inputs = static_cast<int32_t>(shapes.size()), outputs = part.getNbOutputs();
  std::string const text = std::to_string(part.configurePlugin(in.data(), inputs, nullptr, outputs));
  return text + ",\"workspace\":" + std::to_string(part.getWorkspaceSize(in.data(), inputs, nullptr, outputs));
}

}  // namespace

Life::Life(Library const& library, std::string op, std::string data) : library_(library), op_(std::move(op)) {
  std::unique_ptr<IPluginV3> const first = library_.create(op_, data, nvinfer1::TensorRTPhase::kBUILD);
  if (first == nullptr) {
    throw std::runtime_error("refused");
  }
  plugin_.reset(first->clone());
}

std::string Life::answers(Shapes const& shapes) const {
  IPluginV3OneBuild& part = build(*plugin_);
  auto const& core = *static_cast<IPluginV3OneCore*>(plugin_->getCapabilityInterface(PluginCapabilityType::kCORE));
  std::string text = "{\"name\":\"" + std::string(core.getPluginName()) + "\",\"version\":\"" +
                     core.getPluginVersion() + "\",\"namespace\":\"" + core.getPluginNamespace() + "\"";
  text += ",\"types\":" + output_types(part, shapes) + ",\"outputs\":" + output_shapes(part, shapes);
  text += ",\"configured\":" + configured(part, shapes);
  text += ",\"serialized\":" + std::to_string(serialized(*plugin_).size());
  count(true);
  std::unique_ptr<IPluginV3> const plugin = attached(library_, op_, *plugin_);
  count(false);
  text += ",\"attaching\":[" + std::to_string(counted().allocations) + "," + std::to_string(counted().locks) + "]";
  text += ",\"attached\":" + std::string(plugin != nullptr ? "true" : "false");
  if (plugin != nullptr) {
    text += ",\"changed\":" + std::to_string(change(*plugin, shapes));
    text += ",\"enqueued\":" + std::to_string(enqueue(*plugin, shapes));
    text += ",\"launches\":" + launches();
    text += ",\"enqueuing\":[" + std::to_string(counted().allocations) + "," + std::to_string(counted().locks) + "]";
  }
  return text + "}";
}

std::string Life::threads(std::vector<Shapes> const& cases, int count, int rounds) const {
  constexpr uint64_t kContexts = 5;
  auto const record = [&](IPluginV3& plugin, Shapes const& shapes) {
    return change(plugin, shapes) == 0 && enqueue(plugin, shapes) == 0 ? launches() : "";
  };
  std::vector<std::vector<std::string>> wanted(kContexts);
  for (uint64_t context = 0; context < kContexts; ++context) {
    stand_in_context(context + 1);
    for (Shapes const& shapes : cases) {
      wanted[context].push_back(record(*attached(library_, op_, *plugin_), shapes));
    }
  }
  std::vector<std::string> found(static_cast<size_t>(count), "equal");
  auto const work = [&](size_t thread) {
    for (int round = 0; round < rounds; ++round) {
      std::vector<std::unique_ptr<IPluginV3>> plugins;
      for (uint64_t context = 0; context < kContexts; ++context) {
        stand_in_context(context + 1);
        plugins.push_back(attached(library_, op_, *plugin_));
      }
      for (uint64_t i = 0; i < kContexts * cases.size(); ++i) {
        uint64_t const context = (i + thread) % kContexts, at = (i / kContexts + thread) % cases.size();
        stand_in_context(context + 1);
        if (record(*plugins[context], cases[at]) != wanted[context][at]) {
          found[thread] = "another record";
        }
      }
    }
  };
  std::vector<std::thread> all;
  for (size_t thread = 0; thread < found.size(); ++thread) {
    all.emplace_back(work, thread);
  }
  for (std::thread& thread : all) {
    thread.join();
  }
  std::string answer = wanted[0][0].empty() ? "no record" : "equal";
  for (std::string const& said : found) {
    answer = said != "equal" ? said : answer;
  }
  stand_in_context(1);
  return answer;
}

}  // namespace life
