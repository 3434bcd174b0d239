// One step of a DiT from a bundle's engines, without Python: embed once, block for each layer, head once.
//
//   dit_step BUNDLE WEIGHTS INPUTS LAYERS OUT
//
// WEIGHTS is the bundle's weights.safetensors. INPUTS is a safetensors file of what docs/embedding.md lists: tokens,
// time_features, text, cos, sin, noise, a, b, c (condition too, from an image). OUT gets the new tokens, fp32 [L, 64].
// Link it to libturbotrt_plugins, the CUDA runtime and libnvinfer; or to libtensorrt_rtx, with that SDK's headers.
// The tests run it on engines that stand in; it has never run on a GPU.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" bool initTurbotrtPlugins(void* logger, char const* name_space);

namespace {

using Tensors = std::map<std::string, void*>;  // by name, in device memory, at multiples of 256 bytes

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, char const* text) noexcept override {
    if (severity <= Severity::kWARNING) {
      std::fprintf(stderr, "%s\n", text);
    }
  }
};

void require(bool good, std::string const& what) {
  if (!good) {
    throw std::runtime_error(what);
  }
}

std::vector<char> read(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

void* device_memory(size_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, bytes > 0 ? bytes : 1) == cudaSuccess, "no device memory");  // ends with the process
  return memory;
}

// A safetensors file's tensors on the device; ``bytes`` by name. The header is JSON, after eight bytes of its length:
// {"NAME": {"dtype": …, "shape": […], "data_offsets": [FROM, TO]}, …}
Tensors upload(std::string const& path, std::map<std::string, size_t>& bytes) {
  std::vector<char> const file = read(path);
  require(file.size() >= 8, path + " is cut short");
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(file[i]);
  }
  require(length <= file.size() - 8, path + " is cut short");
  std::string const header(file.data() + 8, length);
  Tensors found;
  for (size_t at = 0; (at = header.find("\"data_offsets\"", at)) != std::string::npos; ++at) {
    size_t const comma = header.find(',', at), start = 8 + length;
    size_t const from = start + std::stoull(header.substr(header.find('[', at) + 1));
    size_t const to = start + std::stoull(header.substr(comma + 1));
    require(from <= to && to <= file.size(), path + " is cut short");
    size_t const end = header.rfind('"', header.rfind('{', at)), begin = header.rfind('"', end - 1) + 1;
    std::string const name = header.substr(begin, end - begin);
    found[name] = device_memory(to - from);
    bytes[name] = to - from;
    void const* const source = file.data() + from;
    require(cudaMemcpy(found[name], source, to - from, cudaMemcpyHostToDevice) == cudaSuccess, "no copy");
  }
  return found;
}

// One engine for L tokens. Its context runs on memory of the size that this L needs, not the profile's largest.
class Stage {
 public:
  Stage(nvinfer1::ILogger& logger, std::string const& path, int64_t length) : path_(path) {
    std::vector<char> const data = read(path);
    // Where the engine carries the library (--embed-plugins): setEngineHostCodeAllowed(true), and a runtime for each.
    runtime_.reset(nvinfer1::createInferRuntime(logger));
    require(runtime_ != nullptr, "no TensorRT runtime");
    engine_.reset(runtime_->deserializeCudaEngine(data.data(), data.size()));
    require(engine_ != nullptr, path + " does not load");
    context_.reset(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    require(context_ != nullptr, path + " gives no context");
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      char const* const name = engine_->getIOTensorName(i);
      nvinfer1::Dims dims = engine_->getTensorShape(name);
      bool const input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      size_t bytes = engine_->getTensorDataType(name) == nvinfer1::DataType::kBF16 ? 2 : 4;
      for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
        dims.d[axis] = dims.d[axis] < 0 ? length : dims.d[axis];
        bytes *= static_cast<size_t>(dims.d[axis]);
      }
      require(!input || context_->setInputShape(name, dims), path + " refuses these tokens");
      (input ? inputs_ : outputs_)[name] = bytes;
    }
    int64_t const needed = context_->updateDeviceMemorySizeForShapes();
    context_->setDeviceMemoryV2(device_memory(static_cast<size_t>(needed)), needed);
  }

  // Room for the outputs, by their names without "_out".
  Tensors outputs() const {
    Tensors made;
    for (auto const& [name, bytes] : outputs_) {
      made[name.substr(0, name.size() - 4)] = device_memory(bytes);
    }
    return made;
  }

  // Enqueues with these activations, and the weights whose names begin with the prefix for all other inputs.
  void run(Tensors const& given, Tensors const& weights, std::string const& prefix, Tensors const& made,
           cudaStream_t stream) {
    for (auto const& [name, bytes] : inputs_) {
      auto const activation = given.find(name);
      void* const address = activation != given.end() ? activation->second : weights.at(prefix + name);
      require(context_->setTensorAddress(name.c_str(), address), path_ + " has no " + name);
    }
    for (auto const& [name, bytes] : outputs_) {
      require(context_->setTensorAddress(name.c_str(), made.at(name.substr(0, name.size() - 4))), path_);
    }
    require(context_->enqueueV3(stream), path_ + " does not run");
  }

 private:
  std::string path_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::map<std::string, size_t> inputs_, outputs_;  // bytes by name
};

void step(std::string const& bundle, char const* weights_file, char const* inputs_file, int layers, char const* out) {
  Logger logger;
  require(initTurbotrtPlugins(&logger, ""), "the plugins were not taken");
  std::map<std::string, size_t> bytes, unused;
  Tensors given = upload(inputs_file, bytes);
  Tensors const weights = upload(weights_file, unused);
  auto const length = static_cast<int64_t>(bytes.at("tokens") / (64 * sizeof(float)));
  Stage embed(logger, bundle + "/embed.engine", length), block(logger, bundle + "/block.engine", length),
      head(logger, bundle + "/head.engine", length);
  cudaStream_t stream = nullptr;
  require(cudaStreamCreate(&stream) == cudaSuccess, "no stream");

  Tensors const embedded = embed.outputs(), made = head.outputs();
  embed.run(given, weights, "", embedded, stream);
  for (auto const& [name, memory] : embedded) {
    given[name] = memory;  // x, context, e, e0
  }
  Tensors turns[2] = {{{"x", embedded.at("x")}}, block.outputs()};  // the block may not write the x that it reads
  for (int layer = 0; layer < layers; ++layer) {
    Tensors const& next = turns[(layer + 1) % 2];
    block.run(given, weights, "blocks." + std::to_string(layer) + ".", next, stream);
    given["x"] = next.at("x");
  }
  head.run(given, weights, "", made, stream);

  std::vector<char> tokens(bytes.at("tokens"));
  require(cudaStreamSynchronize(stream) == cudaSuccess, "the step failed");
  cudaError_t const copied = cudaMemcpy(tokens.data(), made.at("tokens"), tokens.size(), cudaMemcpyDeviceToHost);
  require(copied == cudaSuccess, "no copy");
  std::ofstream(out, std::ios::binary).write(tokens.data(), static_cast<std::streamsize>(tokens.size()));
}

}  // namespace

int main(int count, char** words) {
  try {
    require(count == 6, "usage: dit_step BUNDLE WEIGHTS INPUTS LAYERS OUT");
    step(words[1], words[2], words[3], std::stoi(words[4]), words[5]);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
