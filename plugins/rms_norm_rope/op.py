"""QkNormRope (self-attention's q and k) and RmsNorm (cross-attention's)."""

from __future__ import annotations

from plugins.op import Bound, Op, Tensor, symbol

#: Both sides round the same fp32 values to bf16: only values next to a tie may differ.
_BOUNDS = {"": Bound(compare=5e-3, test=1e-3)}

#: q and k are the first and second D columns of their joint projection.
QK_NORM_ROPE = Op(
    name="QkNormRope",
    folder="rms_norm_rope",
    inputs=(
        Tensor("qk", "bf16", ("L", "E"), read=("L", 2 * symbol("D"))),
        Tensor("weight_q", "fp32", ("D",)),
        Tensor("weight_k", "fp32", ("D",)),
        Tensor("cos", "fp32", ("L", 64)),
        Tensor("sin", "fp32", ("L", 64)),
    ),
    outputs=(Tensor("q", "bf16", ("L", "D")), Tensor("k", "bf16", ("L", "D"))),
    dynamic=("L",),
    bounds=_BOUNDS,
    plan_function="qk_launch_plan",
    reference_function="qk_reference",
)

#: The first D of x's E columns, normalized: the key half of the KV projection needs no copy.
RMS_NORM = Op(
    name="RmsNorm",
    folder="rms_norm_rope",
    inputs=(Tensor("x", "bf16", ("L", "E"), read=("L", "D")), Tensor("weight", "fp32", ("D",))),
    outputs=(Tensor("y", "bf16", ("L", "D")),),
    dynamic=("L",),
    bounds=_BOUNDS,
)
