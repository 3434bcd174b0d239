// What plugins/native/example uses of TensorRT, on engines that stand in: an engine's file lists its tensors, one a line
// ("input x bf16 -1 256"), and a run gives every output the sum of all inputs, and one. Each is of its first float.
#pragma once
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace nvinfer1 {

enum class DataType { kFLOAT, kBF16 };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class ExecutionContextAllocationStrategy { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };

struct Dims {
  int32_t nbDims = 0;
  int64_t d[8] = {};
};

class ILogger {
 public:
  enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, char const* text) noexcept = 0;
};

struct Tensor {
  std::string name;
  TensorIOMode mode;
  DataType type;
  Dims dims;
};

// As strict as TensorRT's: all shapes set, memory of the right size given after that, all tensors bound, else no run.
class IExecutionContext {
 public:
  explicit IExecutionContext(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {}
  bool setInputShape(char const* name, Dims const& dims) {
    shapes_[name] = dims;
    return true;
  }
  int64_t updateDeviceMemorySizeForShapes() {
    for (Tensor const& tensor : tensors_) {
      if (tensor.mode == TensorIOMode::kINPUT && shapes_.count(tensor.name) == 0) {
        return -1;
      }
    }
    return kNeeded;
  }
  void setDeviceMemoryV2(void* memory, int64_t size) { ready_ = memory != nullptr && size == kNeeded; }
  bool setTensorAddress(char const* name, void* address) {
    addresses_[name] = static_cast<float*>(address);
    return reinterpret_cast<uintptr_t>(address) % 256 == 0;
  }
  bool enqueueV3(cudaStream_t) {
    float sum = 1;
    for (Tensor const& tensor : tensors_) {
      if (!ready_ || addresses_.count(tensor.name) == 0) {
        return false;
      }
      sum += tensor.mode == TensorIOMode::kINPUT ? *addresses_[tensor.name] : 0;
    }
    for (Tensor const& out : tensors_) {
      for (Tensor const& in : tensors_) {
        bool const written = out.mode == TensorIOMode::kOUTPUT && in.mode == TensorIOMode::kINPUT;
        if (written && addresses_[out.name] == addresses_[in.name]) {
          return false;  // it would write what it reads
        }
      }
      if (out.mode == TensorIOMode::kOUTPUT) {
        *addresses_[out.name] = sum;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kNeeded = 4711;
  std::vector<Tensor> tensors_;
  std::map<std::string, Dims> shapes_;
  std::map<std::string, float*> addresses_;
  bool ready_ = false;
};

class ICudaEngine {
 public:
  explicit ICudaEngine(std::string const& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string mode, name, type;
      words >> mode >> name >> type;
      Tensor tensor{name, mode == "input" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT,
                    type == "bf16" ? DataType::kBF16 : DataType::kFLOAT, {}};
      while (words >> tensor.dims.d[tensor.dims.nbDims]) {
        ++tensor.dims.nbDims;
      }
      tensors_.push_back(tensor);
    }
  }
  int32_t getNbIOTensors() const { return static_cast<int32_t>(tensors_.size()); }
  char const* getIOTensorName(int32_t index) const { return tensors_[static_cast<size_t>(index)].name.c_str(); }
  Dims getTensorShape(char const* name) const { return named(name).dims; }
  TensorIOMode getTensorIOMode(char const* name) const { return named(name).mode; }
  DataType getTensorDataType(char const* name) const { return named(name).type; }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) {
    bool const managed = strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED;
    return managed ? new IExecutionContext(tensors_) : nullptr;
  }

 private:
  Tensor const& named(std::string const& name) const {
    size_t index = 0;
    while (tensors_[index].name != name) {
      ++index;
    }
    return tensors_[index];
  }
  std::vector<Tensor> tensors_;
};

inline bool plugins_registered = false;

class IRuntime {
 public:
  ICudaEngine* deserializeCudaEngine(void const* data, size_t size) {
    return plugins_registered ? new ICudaEngine({static_cast<char const*>(data), size}) : nullptr;
  }
};

inline IRuntime* createInferRuntime(ILogger&) { return new IRuntime; }

}  // namespace nvinfer1

extern "C" inline bool initTurbotrtPlugins(void* logger, char const* name_space) {
  return nvinfer1::plugins_registered = logger != nullptr && *name_space == '\0';
}
