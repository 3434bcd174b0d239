// The probe as a host program: TensorRT's side of what the library meets, in either form.
#pragma once

#include <NvInferRuntime.h>

#include <deque>
#include <string>
#include <vector>

namespace host {

// The version that this program has as a TensorRT: 0 for none, 101401 or 110100.
void be(int version);

// What a logger got since it was last asked, one line each.
std::vector<std::string> take_log();

// A logger finder of the host's form.
void* logger_finder();
// A logger of the host's form.
void* logger();
// Names of all creators that were registered, each with its namespace before it: "ns::op".
std::vector<std::string> registered();

// A shape expression that is a number.
class Dimension final : public nvinfer1::IDimensionExpr {
 public:
  explicit Dimension(int64_t value) : number_(value) { mImpl = &number_; }
  int64_t value() const { return number_.value; }

 private:
  struct Number final : nvinfer1::apiv::VDimensionExpr {
    explicit Number(int64_t given) : value(given) {}
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
  } number_;
};

// Computes shape expressions at once, and keeps the operations that were asked for.
class Builder final : public nvinfer1::IExprBuilder {
 public:
  Builder() : calls_(*this) { mImpl = &calls_; }
  std::vector<int32_t> operations;

  Dimension const* make(int64_t value);

 private:
  struct Calls final : nvinfer1::apiv::VExprBuilder {
    explicit Calls(Builder& given) : builder(given) {}
    nvinfer1::IDimensionExpr const* constant(int64_t value) override { return builder.make(value); }
    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& a,
                                              nvinfer1::IDimensionExpr const& b) override;
    nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&,
                                                      nvinfer1::IDimensionExpr const&) override {
      return nullptr;
    }
    Builder& builder;
  } calls_;
  std::deque<Dimension> made_;
};

}  // namespace host
