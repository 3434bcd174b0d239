"""What the GEMM's Gluon kernels have in common: the order of tiles, GELU, and the scaling of int32 sums.

Two ways turn a K block's sums, below 2^22 in magnitude, into fp32 without a conversion instruction; mma_kernel.py says
what each costs and how exact it is.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # the second until Triton 3.7 is the oldest we take

OFFSET = gl.constexpr(2**21)
BETWEEN = gl.constexpr(4)  # K blocks from one subtraction of the offset to the next


@gluon.jit
def tile_of(pid, m_tiles, n_tiles, group_m):
    """Row and column tile of a number: group_m row tiles walk the columns together, to reuse both operands in L2."""
    group = pid // (group_m * n_tiles)
    first = group * group_m
    size = gl.minimum(m_tiles - first, group_m)
    local = pid % (group_m * n_tiles)
    return first + local % size, local // size


@gluon.jit
def gelu_tanh(x):
    """As plugins.triton_math.gelu_tanh, with one reciprocal (1 ulp) in place of a division's dozen instructions."""
    u = x * (1.0 + 0.044715 * x * x)
    denominator = 1.0 + gl.exp2(u * (-2.0 * 0.7978845608028654 * 1.4426950408889634))
    inverse = gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=r,r", [denominator], dtype=gl.float32, is_pure=True, pack=1
    )
    return x * inverse


@gluon.jit
def scaled(acc, product, scale, EXACT: gl.constexpr):
    """acc + product·scale, of a product whose sums started at MAGIC_BITS if EXACT, else at OFFSET.

    In PTX, since LLVM would gather these at the loop's end, where all products would have to be kept.
    """
    if EXACT:
        result = gl.inline_asm_elementwise(
            "{ .reg .f32 sum; add.rn.f32 sum, $1, 0fCB400000; fma.rn.f32 $0, sum, $2, $3; }",
            "=f,r,f,f",
            [product, scale, acc],
            dtype=gl.float32,
            is_pure=False,
            pack=1,
        )
    else:
        result = gl.inline_asm_elementwise(
            "fma.rn.f32 $0, $1, $2, $3;", "=f,r,f,f", [product, scale, acc], dtype=gl.float32, is_pure=False, pack=1
        )
    return result


@gluon.jit
def without_offset(acc, scales, COUNT: gl.constexpr):
    """The COUNT accumulators less OFFSET·2^-149 times these scales' sum."""
    new = ()
    for i in gl.static_range(COUNT):
        new += (acc[i] - scales * (2.0**-64) * (2.0**-64),)
    return new
