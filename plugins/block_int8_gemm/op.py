"""BlockInt8Gemm and the two ops that add an epilogue to it."""

from __future__ import annotations

from plugins.block_int8_quantize.op import QUANTIZED_BOUNDS
from plugins.op import Attributes, Bound, Dims, Op, Operations, Tensor, ceil_div, symbol

_K_BLOCKS = ceil_div(symbol("K"), 128)
_N_BLOCKS = ceil_div(symbol("N"), 128)
_M_BLOCKS = ceil_div(symbol("M"), 128)

_OPERANDS = (
    Tensor("x", "int8", ("M", "K")),
    Tensor("x_scale", "fp32", (_M_BLOCKS, _K_BLOCKS)),
    Tensor("weight", "int8", ("N", "K")),
    Tensor("weight_scale", "fp32", (_N_BLOCKS, _K_BLOCKS)),
    Tensor("bias", "fp32", ("N",)),
)

#: The tests' products are in fp32: rounding the output to bf16 adds 2^-8/√3 of the binade's bottom, 1.7e-3 RMS over a
#: binade. The arithmetic alone stays below 1e-5, since integer products are exact, or 3e-5 where mma_kernel.py sums
#: with an offset.
_BF16_BOUNDS = {"": Bound(compare=5e-3, test=2e-3)}


def _product(dims: Dims, _attributes: Attributes) -> Operations:
    return {"int8": 2.0 * dims["M"] * dims["N"] * dims["K"]}


#: y = x·wᵀ + bias
BLOCK_INT8_GEMM = Op(
    name="BlockInt8Gemm",
    folder="block_int8_gemm",
    inputs=_OPERANDS,
    outputs=(Tensor("y", "bf16", ("M", "N")),),
    dynamic=("M",),
    bounds=_BF16_BOUNDS,
    operations=_product,
    tunable=True,
)

#: (y, y_scale) = quantize(gelu_tanh(x·wᵀ + bias)): a GEMM tile is one quantization block, so bf16 never reaches memory.
BLOCK_INT8_GEMM_GELU = Op(
    name="BlockInt8GemmGelu",
    folder="block_int8_gemm",
    inputs=_OPERANDS,
    outputs=(Tensor("y", "int8", ("M", "N")), Tensor("y_scale", "fp32", (_M_BLOCKS, _N_BLOCKS))),
    dynamic=("M",),
    bounds=QUANTIZED_BOUNDS,
    operations=_product,
    tunable=True,
    plan_function="gelu_launch_plan",
    reference_function="gelu_reference",
)

#: y = residual + gate·(x·wᵀ + bias)
BLOCK_INT8_GEMM_RESIDUAL = Op(
    name="BlockInt8GemmResidual",
    folder="block_int8_gemm",
    inputs=(*_OPERANDS, Tensor("gate", "fp32", ("N",)), Tensor("residual", "bf16", ("M", "N"))),
    outputs=(Tensor("y", "bf16", ("M", "N")),),
    dynamic=("M",),
    bounds=_BF16_BOUNDS,
    operations=_product,
    tunable=True,
    plan_function="residual_launch_plan",
    reference_function="residual_reference",
)
