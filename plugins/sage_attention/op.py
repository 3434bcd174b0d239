"""SageAttention: dense softmax attention, scale 1/√128; INT8 q·kᵀ or bf16."""

from __future__ import annotations

from plugins.op import Attr, Op, Tensor

#: o = softmax(q·kᵀ/√128)·v per head of 128 columns; v is the last D columns of its tensor (E ≥ D).
SAGE_ATTENTION = Op(
    name="SageAttention",
    folder="sage_attention",
    inputs=(Tensor("q", "bf16", ("L", "D")), Tensor("k", "bf16", ("S", "D")), Tensor("v", "bf16", ("S", "E"))),
    outputs=(Tensor("o", "bf16", ("L", "D")),),
    attributes=(Attr("precision", "int8"),),
    dynamic=("L", "S"),
)
