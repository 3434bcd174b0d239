#include "expr.h"

#include <algorithm>
#include <string>

#include "facts.h"
#include "refusal.h"

namespace turbotrt {

namespace {

// Throws Refusal for a text that names no operator.
Operator operator_named(std::string_view text) {
#define TURBOTRT_NAMED(name, value, operation) \
  if (text == name) {                          \
    return Operator::value;                    \
  }
  TURBOTRT_OPERATORS(TURBOTRT_NAMED)
#undef TURBOTRT_NAMED
  throw Refusal("not a dimension expression: an operator that there is not");
}

bool is_division(Operator op) { return op == Operator::FloorDivision || op == Operator::CeilDivision; }

// a divided by b > 0, rounded down or up.
int64_t divided(int64_t a, int64_t b, bool up) {
  int64_t const quotient = a / b, rest = a % b;
  return quotient + (up ? rest > 0 : 0) - (up ? 0 : rest < 0);
}

}  // namespace

bool apply(Operator op, int64_t a, int64_t b, int64_t& result) {
  switch (op) {
    case Operator::Sum:
      return !__builtin_add_overflow(a, b, &result);
    case Operator::Difference:
      return !__builtin_sub_overflow(a, b, &result);
    case Operator::Product:
      return !__builtin_mul_overflow(a, b, &result);
    case Operator::FloorDivision:
    case Operator::CeilDivision:
      result = b > 0 ? divided(a, b, op == Operator::CeilDivision) : 0;
      return b > 0;
    case Operator::Maximum:
      result = std::max(a, b);
      return true;
    case Operator::Minimum:
      result = std::min(a, b);
      return true;
  }
  return false;
}

Expr Expr::read(Reader& reader, std::vector<std::string_view> const& symbols) {
  Expr made;
  size_t const root = made.read_node(reader, symbols, kMaxDepth);
  made.nodes_.resize(root + 1);  // what folding left behind is before it, or cut off here
  made.nodes_.shrink_to_fit();
  return made;
}

size_t Expr::read_node(Reader& reader, std::vector<std::string_view> const& symbols, int depth) {
  if (reader.at_text()) {
    auto const found = std::find(symbols.begin(), symbols.end(), reader.text());
    if (found == symbols.end()) {
      throw Refusal("a symbol that no input gives");
    }
    return add({Kind::Symbol, {}, found - symbols.begin(), 0, 0});
  }
  if (!reader.at_array()) {
    return add({Kind::Constant, {}, reader.integer(-kMaxNumber, kMaxNumber), 0, 0});
  }
  if (depth == 0) {
    throw Refusal("not a dimension expression: it is too deep");
  }
  reader.array(3, 3);
  Operator const op = operator_named(reader.text());
  size_t const a = read_node(reader, symbols, depth - 1);
  size_t const b = read_node(reader, symbols, depth - 1);
  if (is_division(op) && !(nodes_[b].kind == Kind::Constant && nodes_[b].value > 0)) {
    throw Refusal("a division by what is no positive number");
  }
  return apply_node(op, a, b);
}

size_t Expr::apply_node(Operator op, size_t a, size_t b) {
  if (nodes_[a].kind == Kind::Constant && nodes_[b].kind == Kind::Constant) {
    int64_t value = 0;
    if (!apply(op, nodes_[a].value, nodes_[b].value, value) || value > kMaxNumber || value < -kMaxNumber) {
      throw Refusal("not a dimension expression: a number that is too large");
    }
    return add({Kind::Constant, {}, value, 0, 0});
  }
  bool const by_one = is_constant(b, 1) && (op == Operator::Product || is_division(op));
  if (by_one || (is_constant(b, 0) && (op == Operator::Sum || op == Operator::Difference))) {
    return a;
  }
  if (op == Operator::Product && is_constant(a, 1)) {
    return b;
  }
  return add({Kind::Operation, op, 0, static_cast<uint32_t>(a), static_cast<uint32_t>(b)});
}

size_t Expr::add(Node node) {
  nodes_.push_back(node);
  return nodes_.size() - 1;
}

bool Expr::is_constant(size_t node, int64_t value) const {
  return nodes_[node].kind == Kind::Constant && nodes_[node].value == value;
}

bool Expr::evaluate(std::vector<int64_t> const& symbols, int64_t& value) const {
  return evaluate_node(nodes_.size() - 1, symbols, value);
}

bool Expr::evaluate_node(size_t index, std::vector<int64_t> const& symbols, int64_t& value) const {
  Node const& node = nodes_[index];
  if (node.kind == Kind::Constant) {
    value = node.value;
    return true;
  }
  if (node.kind == Kind::Symbol) {
    value = symbols[static_cast<size_t>(node.value)];
    return true;
  }
  int64_t a = 0, b = 0;
  return evaluate_node(node.a, symbols, a) && evaluate_node(node.b, symbols, b) && apply(node.op, a, b, value);
}

}  // namespace turbotrt
