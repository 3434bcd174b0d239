"""LayerNormQuantize: LayerNorm, a per-channel scale and shift, and block-128 INT8 quantization in one op."""

from __future__ import annotations

from plugins.block_int8_quantize.op import QUANTIZED_BOUNDS
from plugins.op import Op, Tensor, ceil_div, symbol

LAYER_NORM_QUANTIZE = Op(
    name="LayerNormQuantize",
    folder="layer_norm_quantize",
    inputs=(Tensor("x", "bf16", ("L", "D")), Tensor("weight", "fp32", ("D",)), Tensor("bias", "fp32", ("D",))),
    outputs=(
        Tensor("y", "int8", ("L", "D")),
        Tensor("y_scale", "fp32", (ceil_div(symbol("L"), 128), ceil_div(symbol("D"), 128))),
    ),
    dynamic=("L",),
    bounds=QUANTIZED_BOUNDS,
)
