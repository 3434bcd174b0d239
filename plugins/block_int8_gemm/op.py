"""BlockInt8Gemm and the two ops that add an epilogue to it."""

from __future__ import annotations

from plugins.op import Op, Tensor, ceil_div, symbol

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

#: y = x·wᵀ + bias
BLOCK_INT8_GEMM = Op(
    name="BlockInt8Gemm",
    folder="block_int8_gemm",
    inputs=_OPERANDS,
    outputs=(Tensor("y", "bf16", ("M", "N")),),
    dynamic=("M",),
)

#: (y, y_scale) = quantize(gelu_tanh(x·wᵀ + bias)): a GEMM tile is one quantization block, so bf16 never reaches memory.
BLOCK_INT8_GEMM_GELU = Op(
    name="BlockInt8GemmGelu",
    folder="block_int8_gemm",
    inputs=_OPERANDS,
    outputs=(Tensor("y", "int8", ("M", "N")), Tensor("y_scale", "fp32", (_M_BLOCKS, _N_BLOCKS))),
    dynamic=("M",),
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
    plan_function="residual_launch_plan",
    reference_function="residual_reference",
)
