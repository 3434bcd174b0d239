"""SageSLA: attention over the best key blocks plus a linear branch over all keys."""

from __future__ import annotations

from plugins.op import Attr, Op, Tensor
from plugins.sage_attention.op import QUANTIZED_OUTPUT

#: q and k are after norm and RoPE; v is the last D columns of its tensor (E ≥ D). L ≤ 131072, see kernel.py.
_INPUTS = (
    Tensor("q", "bf16", ("L", "D")),
    Tensor("k", "bf16", ("L", "D")),
    Tensor("v", "bf16", ("L", "E")),
    Tensor("proj_weight", "fp32", (128, 128)),
    Tensor("proj_bias", "fp32", (128,)),
)
_ATTRIBUTES = (Attr("topk_milli", 100), Attr("precision", "int8"))

SAGE_SLA = Op(
    name="SageSLA",
    folder="sage_sla",
    inputs=_INPUTS,
    outputs=(Tensor("o", "bf16", ("L", "D")),),
    attributes=_ATTRIBUTES,
    dynamic=("L",),
)

#: (o, o_scale) = quantize(SageSLA), without rounding to bf16 in between.
SAGE_SLA_QUANTIZE = Op(
    name="SageSLAQuantize",
    folder="sage_sla",
    inputs=_INPUTS,
    outputs=QUANTIZED_OUTPUT,
    attributes=_ATTRIBUTES,
    dynamic=("L",),
    plan_function="quantize_launch_plan",
    reference_function="quantize_reference",
)
