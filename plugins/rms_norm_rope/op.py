"""QkNormRope (self-attention's q and k) and RmsNorm (cross-attention's)."""

from __future__ import annotations

from plugins.op import Op, Tensor

#: q and k are the first and second D columns of their joint projection.
QK_NORM_ROPE = Op(
    name="QkNormRope",
    folder="rms_norm_rope",
    inputs=(
        Tensor("qk", "bf16", ("L", "E")),
        Tensor("weight_q", "fp32", ("D",)),
        Tensor("weight_k", "fp32", ("D",)),
        Tensor("cos", "fp32", ("L", 64)),
        Tensor("sin", "fp32", ("L", 64)),
    ),
    outputs=(Tensor("q", "bf16", ("L", "D")), Tensor("k", "bf16", ("L", "D"))),
    dynamic=("L",),
    plan_function="qk_launch_plan",
    reference_function="qk_reference",
)

#: The first D of x's E columns, normalized: the key half of the KV projection needs no copy.
RMS_NORM = Op(
    name="RmsNorm",
    folder="rms_norm_rope",
    inputs=(Tensor("x", "bf16", ("L", "E")), Tensor("weight", "fp32", ("D",))),
    outputs=(Tensor("y", "bf16", ("L", "D")),),
    dynamic=("L",),
)
