"""Triton functions shared by several ops' kernels."""

from __future__ import annotations

import triton
import triton.language as tl

#: 1.5·2^23: a small fp32 added to it is rounded, half to even, into the low mantissa bits. Triton's and Gluon's kernels
#: share it.
MAGIC = tl.constexpr(12582912.0)
MAGIC_BITS = tl.constexpr(0x4B400000)  # as an int32: sums that start there are MAGIC + sum, read as fp32


@triton.jit
def round_half_even(x):
    """Nearest integer, ties to even, for |x| < 2^22."""
    return (x + MAGIC) - MAGIC


@triton.jit
def quantize_tile(y):
    """(int8 tile, fp32 scale) of one fp32 block as in semantics.md; elements outside the tensor must be 0."""
    amax = tl.maximum(tl.max(tl.abs(y)), 1e-8)
    # Saturated before it is rounded: rounding is an addition, and must not fuse with the product, which rounds first.
    q = round_half_even(tl.minimum(tl.maximum(y * tl.div_rn(128.0, amax), -128.0), 127.0))
    return q.to(tl.int8), amax / 128.0


@triton.jit
def gelu_tanh(x):
    """x·(1 + tanh(u))/2 with u = √(2/π)(x + 0.044715x³), written as x·sigmoid(2u)."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-2.0 * u))
