"""BlockInt8Quantize: activations to INT8 with one scale per 128×128 block."""

from __future__ import annotations

from plugins.op import Bound, Op, Tensor, ceil_div, symbol

#: Of an output quantized like this one, scaled back. The tests look at the INT8 elements themselves: OFF_BY_ONE.
QUANTIZED_BOUNDS = {"": Bound(compare=1e-2, test=3e-3)}
#: The share of INT8 elements that may differ from the reference's, by 1: fp32 sums in another order near a tie.
OFF_BY_ONE = 0.005

BLOCK_INT8_QUANTIZE = Op(
    name="BlockInt8Quantize",
    folder="block_int8_quantize",
    inputs=(Tensor("x", "bf16", ("M", "K")),),
    outputs=(
        Tensor("y", "int8", ("M", "K")),
        Tensor("y_scale", "fp32", (ceil_div(symbol("M"), 128), ceil_div(symbol("K"), 128))),
    ),
    dynamic=("M",),
    bounds=QUANTIZED_BOUNDS,
)
