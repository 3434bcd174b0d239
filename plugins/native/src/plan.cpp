#include "plan.h"

#include <algorithm>

#include "plan_reader.h"
#include "refusal.h"

namespace turbotrt {

namespace {

constexpr size_t kHeader = 16;  // magic, version (u32), length (u64)

uint64_t little_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | static_cast<uint8_t>(bytes[i]);
  }
  return value;
}

// The body of a plan's file. Throws Refusal.
std::string_view body_of(std::string_view data) {
  if (data.size() < kHeader || data.substr(0, 4) != TURBOTRT_MAGIC) {
    throw Refusal("not a launch plan: it does not start with " TURBOTRT_MAGIC " and a header");
  }
  uint64_t const version = little_endian(data.substr(4, 4)), length = little_endian(data.substr(8, 8));
  if (version != kFormatVersion) {
    throw Refusal("launch plan of format " + std::to_string(version) + "; this library, of turbotrt " TURBOTRT_VERSION
                  ", reads format " + std::to_string(kFormatVersion) +
                  ": take the library of the turbotrt that exported it, or export again");
  }
  if (length > data.size() - kHeader) {
    throw Refusal("launch plan is cut short: " + std::to_string(data.size() - kHeader) + " of " +
                  std::to_string(length) + " bytes");
  }
  return data.substr(kHeader, length);
}

// a op b. Throws Refusal where 64 bits do not hold it.
int64_t applied(Operator op, int64_t a, int64_t b) {
  int64_t value = 0;
  if (!apply(op, a, b, value)) {
    throw Refusal("a size that 64 bits do not hold");
  }
  return value;
}

int64_t aligned(int64_t bytes) {
  return applied(Operator::Product, applied(Operator::CeilDivision, bytes, kAlignment), kAlignment);
}

std::string text_of(nvinfer1::Dims const& dims) {
  std::string text = "(";
  for (int32_t i = 0; i < std::min(dims.nbDims, nvinfer1::Dims::MAX_DIMS); ++i) {
    text += (i != 0 ? ", " : "") + std::to_string(dims.d[i]);
  }
  return text + ")";
}

}  // namespace

int64_t evaluated(Expr const& expr, std::vector<int64_t> const& symbols) {
  int64_t value = 0;
  if (!expr.evaluate(symbols, value)) {
    throw Refusal("an expression whose value 64 bits do not hold");
  }
  return value;
}

std::shared_ptr<Plan const> Plan::decode(std::string data) {
  auto made = std::make_shared<Plan>();
  made->data = std::move(data);
  std::string_view const body = body_of(made->data);
  try {
    read_plan(body, *made);
  } catch (Refusal const& refusal) {
    throw Refusal(std::string("launch plan does not decode: ") + refusal.what());
  }
  return made;
}

void Plan::check_rank(size_t input, nvinfer1::Dims const& dims) const {
  TensorSpec const& spec = inputs[input];
  if (dims.nbDims != static_cast<int32_t>(spec.shape.size())) {
    throw Refusal(std::string(spec.name) + " has shape " + text_of(dims) + ", this plan wants " +
                  std::to_string(spec.shape.size()) + " dimensions");
  }
}

void Plan::check_shape(size_t input, nvinfer1::Dims const& dims, std::vector<int64_t> const& values) const {
  TensorSpec const& spec = inputs[input];
  for (size_t axis = 0; axis < spec.shape.size(); ++axis) {
    int64_t const wanted = evaluated(spec.shape[axis], values);
    if (dims.d[axis] != wanted) {
      throw Refusal(std::string(spec.name) + " has shape " + text_of(dims) + ", this plan wants " +
                    std::to_string(wanted) + " on axis " + std::to_string(axis));
    }
  }
}

int64_t Plan::buffer_bytes(TensorSpec const& spec, std::vector<int64_t> const& values) const {
  int64_t bytes = spec.dtype.bytes;
  for (Expr const& dim : spec.shape) {
    bytes = applied(Operator::Product, bytes, evaluated(dim, values));
  }
  return bytes;
}

int64_t Plan::scratch_bytes(std::vector<int64_t> const& values) const {
  int64_t largest = 0;
  for (LaunchSpec const& launch : launches) {
    int64_t bytes = kernels[launch.kernel].global_scratch;
    for (Expr const& dim : launch.grid) {
      bytes = applied(Operator::Product, bytes, evaluated(dim, values));
    }
    largest = std::max(largest, bytes);
  }
  return largest;
}

int64_t Plan::workspace(std::vector<int64_t> const& values, std::vector<int64_t>& offsets) const {
  int64_t total = 0;
  for (size_t i = 0; i < slots(); ++i) {
    int64_t const bytes = i < buffers.size() ? buffer_bytes(buffers[i], values) : scratch_bytes(values);
    if (bytes < 0) {
      throw Refusal("a workspace of less than no bytes");
    }
    offsets[i] = total;
    total = applied(Operator::Sum, total, aligned(bytes));
  }
  return total;
}

}  // namespace turbotrt
