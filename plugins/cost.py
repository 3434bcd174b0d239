"""What an op must move and compute, as functions of its dims: the numerators of TOPS, TB/s and of the roofline.

Needed bytes are each input read once and each output written once; workspace is not needed, so it does not count.
A new op needs a line in OPERATIONS, and one in PARTLY_READ if it does not read an input whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from plugins.dtypes import DTYPES
from plugins.expr import evaluate
from plugins.op import AttrValue, Op, Tensor

Dims = Mapping[str, int]
Attributes = Mapping[str, AttrValue]
#: Multiplications and additions by the dtype whose tensor cores do them: "int8", "fp8", "fp16" (bf16 has its rate).
Operations = dict[str, float]
HEAD, KEY_BLOCK = 128, 64


@dataclass(frozen=True)
class Cost:
    """Needed bytes, and tensor-core operations by dtype."""

    bytes: int
    operations: Mapping[str, float]

    @property
    def total(self) -> float:
        """All operations; 0 for an op that only moves."""
        return sum(self.operations.values())


def _none(_dims: Dims, _attributes: Attributes) -> Operations:
    return {}


def _gemm(dims: Dims, _attributes: Attributes) -> Operations:
    """A matrix product: 2·M·N·K."""
    return {"int8": 2.0 * dims["M"] * dims["N"] * dims["K"]}


def _softmax_attention(queries: float, keys: float, width: int, attributes: Attributes) -> Operations:
    """q·kᵀ and p·v: 2·L·S·D each; precision int8 forms p·v in FP8 (FP16 where there is none)."""
    product = 2.0 * queries * keys * width
    return {"int8": product, "fp8": product} if attributes["precision"] == "int8" else {"fp16": 2 * product}


def _sage_attention(dims: Dims, attributes: Attributes) -> Operations:
    """Every query meets every key."""
    return _softmax_attention(dims["L"], dims["S"], dims["D"], attributes)


def _sage_sla(dims: Dims, attributes: Attributes) -> Operations:
    """Kept key blocks only (semantics.md, SLA, 1 and 2); the linear branch's φ(k)ᵀv and φ(q)·KV are 2·L·128·D each."""
    length, width = dims["L"], dims["D"]
    kept = max(1, -(-length // KEY_BLOCK) * int(attributes["topk_milli"]) // 1000)
    found = _softmax_attention(length, min(length, kept * KEY_BLOCK), width, attributes)
    found["fp16"] = found.get("fp16", 0.0) + 4.0 * length * HEAD * width
    return found


OPERATIONS: Mapping[str, Callable[[Dims, Attributes], Operations]] = MappingProxyType(
    {
        "BlockInt8Quantize": _none,
        "LayerNormQuantize": _none,
        "QkNormRope": _none,
        "RmsNorm": _none,
        "BlockInt8Gemm": _gemm,
        "BlockInt8GemmGelu": _gemm,
        "BlockInt8GemmResidual": _gemm,
        "SageSLA": _sage_sla,
        "SageSLAQuantize": _sage_sla,
        "SageAttention": _sage_attention,
        "SageAttentionQuantize": _sage_attention,
    }
)

#: (op, input) → how many elements it reads, where that is not the whole tensor.
PARTLY_READ: Mapping[tuple[str, str], Callable[[Dims], int]] = MappingProxyType(
    {
        ("RmsNorm", "x"): lambda dims: dims["L"] * dims["D"],  # k of k|v
        ("SageAttention", "v"): lambda dims: dims["S"] * dims["D"],  # v of k|v
        ("SageAttentionQuantize", "v"): lambda dims: dims["S"] * dims["D"],
    }
)


def _elements(op: Op, tensor: Tensor, dims: Dims) -> int:
    if (partly := PARTLY_READ.get((op.name, tensor.name))) is not None and tensor in op.inputs:
        return partly(dims)
    return prod(evaluate(dim, dims) for dim in tensor.dims)


def cost(op: Op, dims: Dims, attributes: Attributes) -> Cost:
    """The cost of one call with all dims and attributes known. Raises KeyError for an op that has no line here."""
    moved = sum(DTYPES[t.dtype].bytes * _elements(op, t, dims) for t in (*op.inputs, *op.outputs))
    return Cost(moved, OPERATIONS[op.name](dims, attributes))
