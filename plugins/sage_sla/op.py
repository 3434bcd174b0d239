"""SageSLA: attention over the best key blocks plus a linear branch over all keys."""

from __future__ import annotations

from plugins.op import Attr, Op, Tensor

#: q and k are after norm and RoPE; v is the last D columns of its tensor (E ≥ D). L ≤ 131072, see kernel.py.
SAGE_SLA = Op(
    name="SageSLA",
    folder="sage_sla",
    inputs=(
        Tensor("q", "bf16", ("L", "D")),
        Tensor("k", "bf16", ("L", "D")),
        Tensor("v", "bf16", ("L", "E")),
        Tensor("proj_weight", "fp32", (128, 128)),
        Tensor("proj_bias", "fp32", (128,)),
    ),
    outputs=(Tensor("o", "bf16", ("L", "D")),),
    attributes=(Attr("topk_milli", 100), Attr("precision", "int8")),
    dynamic=("L",),
)
