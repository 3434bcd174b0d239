"""SageAttention: dense softmax attention, scale 1/√128; INT8 q·kᵀ or bf16."""

from __future__ import annotations

from plugins.op import Attr, Attributes, Bound, Dims, Op, Operations, Tensor, ceil_div, symbol

HEAD = 128  # columns of one head
BLOCK_Q, BLOCK_K = 128, 64  # rows of a query block and of a key block

_INPUTS = (
    Tensor("q", "bf16", ("L", "D")),
    Tensor("k", "bf16", ("S", "D")),
    Tensor("v", "bf16", ("S", "E"), read=("S", "D")),
)
#: An output quantized as BlockInt8Quantize would: a tile of attention is one quantization block.
QUANTIZED_OUTPUT = (
    Tensor("o", "int8", ("L", "D")),
    Tensor("o_scale", "fp32", (ceil_div(symbol("L"), 128), ceil_div(symbol("D"), 128))),
)


def softmax_operations(queries: float, keys: float, width: int, attributes: Attributes) -> Operations:
    """q·kᵀ and p·v: 2·L·S·D each; precision int8 forms p·v in FP8 (FP16 where there is none)."""
    product = 2.0 * queries * keys * width
    return {"int8": product, "fp8": product} if attributes["precision"] == "int8" else {"fp16": 2 * product}


def _operations(dims: Dims, attributes: Attributes) -> Operations:
    """Every query meets every key."""
    return softmax_operations(dims["L"], dims["S"], dims["D"], attributes)


#: o = softmax(q·kᵀ/√128)·v per head of 128 columns; v is the last D columns of its tensor (E ≥ D).
SAGE_ATTENTION = Op(
    name="SageAttention",
    folder="sage_attention",
    inputs=_INPUTS,
    outputs=(Tensor("o", "bf16", ("L", "D")),),
    attributes=(Attr("precision", "int8"),),
    dynamic=("L", "S"),
    bounds={"int8": Bound(compare=5e-2, test=5e-2), "bf16": Bound(compare=1e-2, test=1e-2)},
    operations=_operations,
)

#: (o, o_scale) = quantize(SageAttention), without rounding to bf16 in between.
SAGE_ATTENTION_QUANTIZE = Op(
    name="SageAttentionQuantize",
    folder="sage_attention",
    inputs=_INPUTS,
    outputs=QUANTIZED_OUTPUT,
    attributes=(Attr("precision", "int8"),),
    dynamic=("L", "S"),
    bounds={"int8": Bound(compare=5e-2, test=5e-2), "bf16": Bound(compare=2e-2, test=2e-2)},
    operations=_operations,
    plan_function="quantize_launch_plan",
    reference_function="quantize_reference",
)
