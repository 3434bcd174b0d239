"""What an op must move and compute, as functions of its dims: the numerators of TOPS, TB/s and of the roofline.

Needed bytes are what each input must give, read once, and each output written once; workspace is not needed, so it does
not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from plugins.dtypes import DTYPES
from plugins.expr import evaluate
from plugins.op import Attributes, Dims, Op, Tensor


@dataclass(frozen=True)
class Cost:
    """Needed bytes, and tensor-core operations by dtype."""

    bytes: int
    operations: Mapping[str, float]

    @property
    def total(self) -> float:
        """All operations; 0 for an op that only moves."""
        return sum(self.operations.values())


def _bytes(tensor: Tensor, dims: Dims) -> int:
    return DTYPES[tensor.dtype].bytes * prod(evaluate(dim, dims) for dim in tensor.needed)


def cost(op: Op, dims: Dims, attributes: Attributes) -> Cost:
    """The cost of one call with all dims and attributes known."""
    moved = sum(_bytes(tensor, dims) for tensor in (*op.inputs, *op.outputs))
    return Cost(moved, op.operations(dims, attributes))
