// The launch plan of plugins/plan.py, read from its bytes; what it may say is bounded as it is there.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "expr.h"
#include "facts.h"

namespace turbotrt {

// Size in bytes, and TensorRT's name.
struct DType {
  int64_t bytes;
  nvinfer1::DataType type;
};

// An input, an output or a workspace buffer.
struct TensorSpec {
  std::string_view name;
  DType dtype;
  std::vector<Expr> shape;
};

// One compiled kernel; sizes in bytes, of scratch for each program.
struct KernelImage {
  std::string name;
  std::string_view cubin;
  int64_t num_warps, shared, global_scratch;
};

// A tensor's index among inputs, outputs and buffers, or an expression of 32 bits.
struct Argument {
  bool is_tensor;
  size_t tensor;
  Expr value;
};

// Arguments of a kernel after the plan's own: global scratch and profile scratch, as Triton has them.
constexpr size_t kTrailing = 2;

struct LaunchSpec {
  size_t kernel;
  std::array<Expr, 3> grid;
  std::vector<Argument> args;
};

// Where a symbol is read from.
struct SymbolSource {
  size_t input, axis;
};

// A whole plan. Views point into ``data``, which is kept as it came, for the engine to hold.
struct Plan {
  std::string data;
  std::string_view op;
  std::vector<std::string_view> symbols;
  std::vector<SymbolSource> sources;
  std::vector<TensorSpec> inputs, outputs, buffers;
  std::vector<KernelImage> kernels;
  std::vector<LaunchSpec> launches;
  bool has_scratch = false;

  Plan() = default;
  Plan(Plan const&) = delete;
  Plan& operator=(Plan const&) = delete;

  // The plan in these bytes; bytes after it are kept, and ignored. Throws Refusal where they hold none.
  static std::shared_ptr<Plan const> decode(std::string data);

  size_t tensors() const { return inputs.size() + outputs.size() + buffers.size(); }
  // Slots of the workspace: the buffers, then one scratch for all launches.
  size_t slots() const { return buffers.size() + (has_scratch ? 1 : 0); }

  // The symbols' values for these input shapes, ``shape(input)`` being its nvinfer1::Dims; ``values`` has room for all.
  // Throws Refusal where a shape disagrees with the plan.
  template <typename Shape>
  void bind(Shape shape, std::vector<int64_t>& values) const {
    for (size_t i = 0; i < inputs.size(); ++i) {
      check_rank(i, shape(i));
    }
    for (size_t i = 0; i < symbols.size(); ++i) {
      values[i] = shape(sources[i].input).d[sources[i].axis];
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      check_shape(i, shape(i), values);
    }
  }

  // Offsets of the workspace's slots, of which there is room for all, and its whole size in bytes. Throws Refusal.
  int64_t workspace(std::vector<int64_t> const& symbols, std::vector<int64_t>& offsets) const;

 private:
  void check_rank(size_t input, nvinfer1::Dims const& dims) const;
  void check_shape(size_t input, nvinfer1::Dims const& dims, std::vector<int64_t> const& symbols) const;
  int64_t buffer_bytes(TensorSpec const& spec, std::vector<int64_t> const& symbols) const;
  int64_t scratch_bytes(std::vector<int64_t> const& symbols) const;
};

// The value of an expression. Throws Refusal where 64 bits do not hold it.
int64_t evaluated(Expr const& expr, std::vector<int64_t> const& symbols);

}  // namespace turbotrt
