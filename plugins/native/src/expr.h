// The expressions of plugins/expr.py: integers over input dimensions, in 64 bits, where every overflow is seen.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "facts.h"
#include "reader.h"

namespace turbotrt {

enum class Operator : uint8_t {
#define TURBOTRT_NAME(text, name, operation) name,
  TURBOTRT_OPERATORS(TURBOTRT_NAME)
#undef TURBOTRT_NAME
};

// a + b and the like, as Python's integers have it; false where 64 bits do not hold it.
bool apply(Operator op, int64_t a, int64_t b, int64_t& result);

// One expression, folded as plugins/expr.py folds it. Its nodes stand after those that they are made of.
class Expr {
 public:
  // An expression over these symbols. Throws Refusal on anything else.
  static Expr read(Reader& reader, std::vector<std::string_view> const& symbols);

  // The value where the symbols have these values; false where 64 bits do not hold it, or a part of it.
  bool evaluate(std::vector<int64_t> const& symbols, int64_t& value) const;

  // Rebuilds the expression in another algebra: T constant(int64_t), T symbol(size_t), T operation(Operator, T, T).
  template <typename T, typename Constant, typename Symbol, typename Operation>
  T fold(Constant constant, Symbol symbol, Operation operation) const {
    return fold_node<T>(nodes_.size() - 1, constant, symbol, operation);
  }

 private:
  enum class Kind : uint8_t { Constant, Symbol, Operation };

  struct Node {
    Kind kind;
    Operator op;
    int64_t value;  // a constant's value, a symbol's index
    uint32_t a, b;  // an operation's nodes
  };

  size_t read_node(Reader& reader, std::vector<std::string_view> const& symbols, int depth);
  size_t apply_node(Operator op, size_t a, size_t b);
  size_t add(Node node);
  bool is_constant(size_t node, int64_t value) const;
  bool evaluate_node(size_t node, std::vector<int64_t> const& symbols, int64_t& value) const;

  template <typename T, typename Constant, typename Symbol, typename Operation>
  T fold_node(size_t index, Constant& constant, Symbol& symbol, Operation& operation) const {
    Node const& node = nodes_[index];
    if (node.kind == Kind::Constant) {
      return constant(node.value);
    }
    if (node.kind == Kind::Symbol) {
      return symbol(static_cast<size_t>(node.value));
    }
    T const a = fold_node<T>(node.a, constant, symbol, operation);
    T const b = fold_node<T>(node.b, constant, symbol, operation);
    return operation(node.op, a, b);
  }

  std::vector<Node> nodes_;
};

}  // namespace turbotrt
