"""Triton functions and constants that the attention kernels share.

Rows of inputs are addressed by int64, because L·E passes 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugins.sage_attention import op
from plugins.triton_math import MAGIC

HEAD = tl.constexpr(op.HEAD)
BLOCK_Q = tl.constexpr(op.BLOCK_Q)
BLOCK_K = tl.constexpr(op.BLOCK_K)
FP8_MAX = tl.constexpr(448.0)  # largest e4m3
FP8_SHIFT = tl.constexpr(8.807354922057604)  # log2(448): fp8 probabilities use e4m3's whole range
LOG2E = tl.constexpr(1.4426950408889634)
SCORE_SCALE = tl.constexpr(1.4426950408889634 / 128**0.5)  # log2(e)/√d: softmax runs on exp2


@triton.jit
def round_to_int8(x):
    """fp32 within ±127.5 → int8, half to even; no libdevice, so that the interpreter runs it too."""
    return (x + MAGIC).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def scalar(x):
    """x as an int32 value: the interpreter's loop counters are Python ints, which break in inlined functions."""
    return tl.program_id(0) * 0 + x


@triton.jit
def int64(x):
    """x as an int64 value."""
    return scalar(x).to(tl.int64)


@triton.jit
def feature_map(x):
    """φ: softmax over the 128 channels. x fp32 [rows,128]."""
    e = tl.exp2((x - tl.max(x, 1)[:, None]) * LOG2E)
    return e * (1.0 / tl.sum(e, 1))[:, None]


@triton.jit
def load_rows(
    x, block, head, length, BLOCK: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr = HEAD
):
    """Rows block·BLOCK… of the first WIDTH of head's 128 columns (after OFFSET columns) of x [length, STRIDE]; zeros
    past the end.
    """
    rows = tl.arange(0, BLOCK)
    pointers = x + int64(block) * BLOCK * STRIDE + head * HEAD + OFFSET
    pointers += rows[:, None] * STRIDE + tl.arange(0, WIDTH)[None, :]
    return tl.load(pointers, mask=(block * BLOCK + rows < length)[:, None], other=0.0)
