"""Small symbolic integer expressions over input dimensions.

One plan must serve Python, TensorRT's shape expressions and, later, a C++ plugin library: grids, scalars, buffer sizes
and output shapes are therefore values of this little language. Its operators are those TensorRT's
``IExprBuilder.operation`` has. In a plan file an expression is an int, a symbol's name, or ``[operator, a, b]``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "ceil_div": lambda a, b: -(-a // b),
    "max": max,
    "min": min,
}
DIVISIONS = ("//", "ceil_div")
MAX_DEPTH = 12  # of a plan file's expressions; our own kernels' are 5 deep
MAX_NUMBER = 2**62


@dataclass(frozen=True)
class Expr:
    """A symbol (``args`` is its name) or an operator applied to two dims."""

    operator: str
    args: tuple[Any, ...]

    def __add__(self, other: Dim) -> Dim:
        return apply("+", self, other)

    def __radd__(self, other: Dim) -> Dim:
        return apply("+", other, self)

    def __sub__(self, other: Dim) -> Dim:
        return apply("-", self, other)

    def __rsub__(self, other: Dim) -> Dim:
        return apply("-", other, self)

    def __mul__(self, other: Dim) -> Dim:
        return apply("*", self, other)

    def __rmul__(self, other: Dim) -> Dim:
        return apply("*", other, self)

    def __floordiv__(self, other: Dim) -> Dim:
        return apply("//", self, other)

    def evaluate(self, symbols: Mapping[str, int]) -> int:
        """The value where each symbol has the given value. Raises KeyError for an unknown symbol."""
        return fold(self, lambda value: value, lambda name: symbols[name], lambda op, a, b: OPERATORS[op](a, b))


Dim: TypeAlias = "int | Expr"


def symbol(name: str) -> Expr:
    """The dimension of that name."""
    return Expr("symbol", (name,))


def apply(operator: str, a: Dim, b: Dim) -> Dim:
    """``a operator b``, folded at once where both are ints or one is neutral."""
    if isinstance(a, int) and isinstance(b, int):
        return OPERATORS[operator](a, b)
    if operator in ("*", "//", "ceil_div") and b == 1:
        return a
    if operator == "*" and a == 1:
        return b
    if operator in ("+", "-") and b == 0:
        return a
    return Expr(operator, (a, b))


def ceil_div(a: Dim, b: Dim) -> Dim:
    """⌈a / b⌉."""
    return apply("ceil_div", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two dims."""
    return apply("max", a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two dims."""
    return apply("min", a, b)


def evaluate(dim: Dim, symbols: Mapping[str, int]) -> int:
    """The value of a dim, be it an int or an expression."""
    return dim if isinstance(dim, int) else dim.evaluate(symbols)


def fold(dim: Dim, constant: Callable[[int], T], named: Callable[[str], T], operation: Callable[[str, T, T], T]) -> T:
    """Rebuild a dim in another algebra: ints, TensorRT's IDimensionExpr, or plain lists."""
    if isinstance(dim, int):
        return constant(dim)
    if dim.operator == "symbol":
        return named(dim.args[0])
    a, b = (fold(arg, constant, named, operation) for arg in dim.args)
    return operation(dim.operator, a, b)


def to_plain(dim: Dim) -> Any:
    """The form a plan file holds: an int, a symbol's name, or ``[operator, a, b]``."""
    return fold(dim, lambda value: value, lambda name: name, lambda op, a, b: [op, a, b])


def from_plain(plain: Any, depth: int = MAX_DEPTH) -> Dim:
    """The inverse of ``to_plain``. Raises ValueError on anything else (plan files are untrusted).

    Refused too: what is deeper than ``depth``, numbers of more than MAX_NUMBER, a divisor that is no positive number.
    """
    if isinstance(plain, str):
        return symbol(plain)
    dim = plain
    if isinstance(plain, list) and len(plain) == 3 and isinstance(plain[0], str) and plain[0] in OPERATORS and depth:
        a, b = (from_plain(part, depth - 1) for part in plain[1:])
        if plain[0] in DIVISIONS and not (isinstance(b, int) and b > 0):
            raise ValueError(f"a division by {reprlib.repr(plain[2])}, which is no positive number")
        dim = apply(plain[0], a, b)
    if isinstance(dim, Expr) or (isinstance(dim, int) and not isinstance(dim, bool) and abs(dim) <= MAX_NUMBER):
        return dim
    raise ValueError(f"not a dimension expression: {reprlib.repr(plain)}")


def symbols_of(dim: Dim) -> frozenset[str]:
    """The names of all symbols in a dim."""
    none: frozenset[str] = frozenset()
    return fold(dim, lambda value: none, lambda name: frozenset((name,)), lambda op, a, b: a | b)
