"""BlockInt8Quantize: activations to INT8 with one scale per 128×128 block."""

from __future__ import annotations

from plugins.op import Op, Tensor, ceil_div, symbol

BLOCK_INT8_QUANTIZE = Op(
    name="BlockInt8Quantize",
    folder="block_int8_quantize",
    inputs=(Tensor("x", "bf16", ("M", "K")),),
    outputs=(
        Tensor("y", "int8", ("M", "K")),
        Tensor("y_scale", "fp32", (ceil_div(symbol("M"), 128), ceil_div(symbol("K"), 128))),
    ),
    dynamic=("M",),
)
