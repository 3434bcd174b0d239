"""SageSLA: attention over the best key blocks plus a linear branch over all keys."""

from __future__ import annotations

from typing import overload

from plugins.expr import Dim, maximum
from plugins.op import Attr, Attributes, Bound, Dims, Op, Operations, Tensor
from plugins.sage_attention.op import BLOCK_K, HEAD, QUANTIZED_OUTPUT, softmax_operations

#: q and k are after norm and RoPE; v is the last D columns of its tensor (E ≥ D). L ≤ 131072, see kernel.py.
_INPUTS = (
    Tensor("q", "bf16", ("L", "D")),
    Tensor("k", "bf16", ("L", "D")),
    Tensor("v", "bf16", ("L", "E"), read=("L", "D")),
    Tensor("proj_weight", "fp32", (HEAD, HEAD)),
    Tensor("proj_bias", "fp32", (HEAD,)),
)
_ATTRIBUTES = (Attr("topk_milli", 100), Attr("precision", "int8"))


@overload
def kept_count(nk: int, topk_milli: int) -> int: ...
@overload
def kept_count(nk: Dim, topk_milli: int) -> Dim: ...
def kept_count(nk: Dim, topk_milli: int) -> Dim:
    """How many of nk key blocks each q block keeps (semantics.md, SLA, 1)."""
    return maximum(1, nk * topk_milli // 1000)


def _operations(dims: Dims, attributes: Attributes) -> Operations:
    """Kept key blocks only; the linear branch's φ(k)ᵀv and φ(q)·KV are 2·L·128·D each (semantics.md, SLA, 2)."""
    length, width = dims["L"], dims["D"]
    kept = kept_count(-(-length // BLOCK_K), int(attributes["topk_milli"]))
    found = softmax_operations(length, min(length, kept * BLOCK_K), width, attributes)
    found["fp16"] = found.get("fp16", 0.0) + 4.0 * length * HEAD * width
    return found


#: The bounds: the reference selects by itself, and in the tests a near tie swaps a whole key block, in bf16 too.
SAGE_SLA = Op(
    name="SageSLA",
    folder="sage_sla",
    inputs=_INPUTS,
    outputs=(Tensor("o", "bf16", ("L", "D")),),
    attributes=_ATTRIBUTES,
    dynamic=("L",),
    bounds={"int8": Bound(compare=5e-2, test=5e-2), "bf16": Bound(compare=1e-2, test=5e-2)},
    operations=_operations,
)

#: (o, o_scale) = quantize(SageSLA), without rounding to bf16 in between.
SAGE_SLA_QUANTIZE = Op(
    name="SageSLAQuantize",
    folder="sage_sla",
    inputs=_INPUTS,
    outputs=QUANTIZED_OUTPUT,
    attributes=_ATTRIBUTES,
    dynamic=("L",),
    bounds={"int8": Bound(compare=5e-2, test=5e-2), "bf16": Bound(compare=2e-2, test=5e-2)},
    operations=_operations,
    plan_function="quantize_launch_plan",
    reference_function="quantize_reference",
)
