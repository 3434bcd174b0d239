"""A stage's dims: numbers, symbols such as "L", or multiples of one such as "8*H"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Sizes = Mapping[str, int]  # symbol → value


def split_dim(dim: str) -> tuple[int, str]:
    """(factor, symbol) of a dim that is not a number."""
    factor, _, symbol = dim.rpartition("*")
    return int(factor or 1), symbol


def shape_of(dims: Iterable[int | str], sizes: Sizes) -> tuple[int, ...]:
    """The shape for these values of the symbols. Raises KeyError on a symbol without one."""
    shape = []
    for dim in dims:
        if isinstance(dim, str):
            factor, symbol = split_dim(dim)
            dim = factor * sizes[symbol]
        shape.append(dim)
    return tuple(shape)
