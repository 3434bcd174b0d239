"""SageAttention: dense softmax attention, scale 1/√128; INT8 q·kᵀ or bf16."""

from __future__ import annotations

from plugins.op import Attr, Op, Tensor, ceil_div, symbol

_INPUTS = (Tensor("q", "bf16", ("L", "D")), Tensor("k", "bf16", ("S", "D")), Tensor("v", "bf16", ("S", "E")))
#: An output quantized as BlockInt8Quantize would: a tile of attention is one quantization block.
QUANTIZED_OUTPUT = (
    Tensor("o", "int8", ("L", "D")),
    Tensor("o_scale", "fp32", (ceil_div(symbol("L"), 128), ceil_div(symbol("D"), 128))),
)

#: o = softmax(q·kᵀ/√128)·v per head of 128 columns; v is the last D columns of its tensor (E ≥ D).
SAGE_ATTENTION = Op(
    name="SageAttention",
    folder="sage_attention",
    inputs=_INPUTS,
    outputs=(Tensor("o", "bf16", ("L", "D")),),
    attributes=(Attr("precision", "int8"),),
    dynamic=("L", "S"),
)

#: (o, o_scale) = quantize(SageAttention), without rounding to bf16 in between.
SAGE_ATTENTION_QUANTIZE = Op(
    name="SageAttentionQuantize",
    folder="sage_attention",
    inputs=_INPUTS,
    outputs=QUANTIZED_OUTPUT,
    attributes=(Attr("precision", "int8"),),
    dynamic=("L", "S"),
    plan_function="quantize_launch_plan",
    reference_function="quantize_reference",
)
