"""RMSNorm, with and without rotary embedding, one row a program. Bytes: each element read once and written once."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from plugins.plan_builder import Dim, Launch, LaunchPlan


@triton.jit
def _normalized(x_ptr, weight_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """fp32 [BLOCK_D]: one row's RMSNorm; columns past D are 0."""
    columns = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0)
    return x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / D + 1e-6)) * weight


@triton.jit
def _rotated(x, cos_ptr, sin_ptr, BLOCK_D: tl.constexpr):
    """Rotary embedding of one row: pairs (2i, 2i+1) by angle i mod 64."""
    pair = tl.arange(0, BLOCK_D // 2) % 64
    cos = tl.load(cos_ptr + pair)
    sin = tl.load(sin_ptr + pair)
    even, odd = tl.split(tl.reshape(x, [BLOCK_D // 2, 2]))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [BLOCK_D])


@triton.jit
def qk_norm_rope(
    qk_ptr,
    weight_q_ptr,
    weight_k_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    k_ptr,
    E,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Row program_id(0) of q (program_id(1) = 0) or k (1)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    if tl.program_id(1) == 0:
        x = _normalized(qk_ptr + row * E, weight_q_ptr, D, BLOCK_D)
        y = _rotated(x, cos_ptr + row * 64, sin_ptr + row * 64, BLOCK_D)
        tl.store(q_ptr + row * D + columns, y.to(tl.bfloat16), mask=columns < D)
    else:
        x = _normalized(qk_ptr + row * E + D, weight_k_ptr, D, BLOCK_D)
        y = _rotated(x, cos_ptr + row * 64, sin_ptr + row * 64, BLOCK_D)
        tl.store(k_ptr + row * D + columns, y.to(tl.bfloat16), mask=columns < D)


@triton.jit
def rms_norm(x_ptr, weight_ptr, y_ptr, E, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """One row of y."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    y = _normalized(x_ptr + row * E, weight_ptr, D, BLOCK_D)
    tl.store(y_ptr + row * D + columns, y.to(tl.bfloat16), mask=columns < D)


def _launch(kernel: object, names: tuple[str, ...], dims: Mapping[str, Dim], copies: int) -> LaunchPlan:
    width = dims["D"]
    if dims["E"] < copies * width:
        raise ValueError(f"{kernel.__name__}: rows of {dims['E']} hold no {copies} × {width} columns")
    constants = {"D": width, "BLOCK_D": triton.next_power_of_2(width)}
    args: dict[str, str | Dim] = {f"{name}_ptr": name for name in names} | {"E": dims["E"]}
    launch = Launch(kernel, (dims["L"], copies, 1), args, constants, num_warps=4 if width <= 2048 else 8)
    return LaunchPlan(buffers=(), launches=(launch,))


def launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of RmsNorm."""
    return _launch(rms_norm, ("x", "weight", "y"), dims, 1)


def qk_launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of QkNormRope."""
    return _launch(qk_norm_rope, ("qk", "weight_q", "weight_k", "cos", "sin", "q", "k"), dims, 2)
