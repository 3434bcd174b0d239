// A plugin of the library for Python on a GPU, by ctypes: in the process and the CUDA context that torch has.
#include <chrono>
#include <cstdio>
#include <stdexcept>

#include "library.h"

namespace {

struct Plugin {
  std::unique_ptr<nvinfer1::IPluginV3> plugin;
  std::vector<nvinfer1::PluginTensorDesc> inputs;
};

int32_t enqueue(Plugin& made, void const* const* inputs, void* const* outputs, void* workspace, void* stream) {
  return life::runtime(*made.plugin)
      .enqueue(made.inputs.data(), nullptr, inputs, outputs, workspace, static_cast<cudaStream_t>(stream));
}

}  // namespace

extern "C" {

// A plugin as an engine has it after it was loaded, or null; what fails is on stderr.
Plugin* gpu_probe_make(char const* path, char const* op, char const* plan, int64_t bytes) {
  try {
    static life::Library const library(path);
    auto const built = library.create(op, std::string(plan, static_cast<size_t>(bytes)), nvinfer1::TensorRTPhase::kBUILD);
    if (built == nullptr) {
      return nullptr;
    }
    auto attached = life::attached(library, op, *built);
    return attached != nullptr ? new Plugin{std::move(attached), {}} : nullptr;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return nullptr;
  }
}

// Takes input shapes, dims after dims: bytes of workspace, or -1.
int64_t gpu_probe_shapes(Plugin* made, int32_t count, int32_t const* ranks, int64_t const* dims) {
  made->inputs.assign(static_cast<size_t>(count), {});
  std::vector<nvinfer1::DynamicPluginTensorDesc> described(made->inputs.size());
  for (size_t i = 0; i < made->inputs.size(); ++i) {
    nvinfer1::Dims& shape = made->inputs[i].dims;
    shape.nbDims = ranks[i];
    for (int32_t axis = 0; axis < ranks[i]; ++axis) {
      shape.d[axis] = *dims++;
    }
    described[i] = {made->inputs[i], shape, shape, shape};
  }
  auto& part = life::build(*made->plugin);
  int32_t const outputs = part.getNbOutputs();
  if (part.configurePlugin(described.data(), count, nullptr, outputs) != 0 ||
      life::runtime(*made->plugin).onShapeChange(made->inputs.data(), count, nullptr, outputs) != 0) {
    return -1;
  }
  return static_cast<int64_t>(part.getWorkspaceSize(described.data(), count, nullptr, outputs));
}

int32_t gpu_probe_enqueue(Plugin* made, void const* const* inputs, void* const* outputs, void* workspace,
                          void* stream) {
  return enqueue(*made, inputs, outputs, workspace, stream);
}

// Seconds that the host takes for so many times enqueue, or -1.
double gpu_probe_seconds(Plugin* made, void const* const* inputs, void* const* outputs, void* workspace, void* stream,
                         int32_t times) {
  auto const start = std::chrono::steady_clock::now();
  for (int32_t i = 0; i < times; ++i) {
    if (enqueue(*made, inputs, outputs, workspace, stream) != 0) {
      return -1;
    }
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void gpu_probe_drop(Plugin* made) { delete made; }

}  // extern "C"
