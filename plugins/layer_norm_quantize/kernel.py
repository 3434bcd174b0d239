"""LayerNorm + modulation + block-128 quantization in Triton: a pass for row statistics, a pass that writes INT8.

Bytes needed: 2·L·D read and L·D written. x is read twice, since a block's scale needs the statistics of 128 rows.
hopper.py has the kernel that sm_90 runs, which reads it once; this file has every other SM's, and the plans.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from plugins.expr import ceil_div
from plugins.layer_norm_quantize import hopper
from plugins.plan_builder import Buffer, Dim, Launch, LaunchPlan
from plugins.triton_math import quantize_tile


@triton.jit
def layer_norm_statistics(x_ptr, mean_ptr, rstd_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mean and reciprocal standard deviation of one row, over exactly D elements, in two passes over registers."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + row.to(tl.int64) * D + columns, mask=columns < D, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / D
    centered = tl.where(columns < D, x - mean, 0.0)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, 1.0 / tl.sqrt(tl.sum(centered * centered, axis=0) / D + 1e-6))


@triton.jit
def layer_norm_quantize(x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, y_ptr, y_scale_ptr, L, D: tl.constexpr):
    """One 128×128 block of the quantized result."""
    D_BLOCKS: tl.constexpr = (D + 127) // 128
    row_block = tl.program_id(0) // D_BLOCKS
    column_block = tl.program_id(0) % D_BLOCKS
    rows = row_block * 128 + tl.arange(0, 128)
    columns = column_block * 128 + tl.arange(0, 128)
    inside = (rows < L)[:, None] & (columns < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * D + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + rows, mask=rows < L, other=0.0)
    rstd = tl.load(rstd_ptr + rows, mask=rows < L, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=columns < D, other=0.0)
    y = (x - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]
    q, scale = quantize_tile(tl.where(inside, y, 0.0))
    tl.store(y_ptr + offsets, q, mask=inside)
    tl.store(y_scale_ptr + row_block * D_BLOCKS + column_block, scale)


def _hopper_plan(length: Dim, dim: int) -> LaunchPlan:
    blocks, stride, rows = ceil_div(length, 128), int(hopper.STRIDE), 4
    count = stride * (1 + blocks) + blocks * (dim // 128)
    zero = {"counters": "counters", "COUNT": count}
    clear = Launch(hopper.clear_counters, (ceil_div(count, 4096), 1, 1), zero, {"BLOCK": 4096})
    args: dict[str, str | Dim] = {f"{name}_ptr": name for name in ("x", "weight", "bias", "y", "y_scale")}
    args |= {"counters": "counters", "L": length}
    warps = next(warps for warps in (4, 2, 1) if dim % (256 * warps) == 0)  # each holds 256 columns at a time
    grid = ceil_div(length, rows), 1, 1
    quantize = Launch(hopper.layer_norm_quantize_hopper, grid, args, {"D": dim, "ROWS": rows}, warps)
    return LaunchPlan((Buffer("counters", "int32", (count,)),), (clear, quantize))


def launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of LayerNormQuantize."""
    length, dim = dims["L"], dims["D"]
    if sm == 90 and isinstance(dim, int) and dim % 256 == 0:
        return _hopper_plan(length, dim)
    statistics = Launch(
        layer_norm_statistics,
        (length, 1, 1),
        {"x_ptr": "x", "mean_ptr": "mean", "rstd_ptr": "rstd"},
        {"D": dim, "BLOCK_D": triton.next_power_of_2(dim)},
        num_warps=4 if dim <= 2048 else 8,
    )
    names = ("x", "mean", "rstd", "weight", "bias", "y", "y_scale")
    quantize = Launch(
        layer_norm_quantize,
        (ceil_div(length, 128) * ceil_div(dim, 128), 1, 1),
        {f"{name}_ptr": name for name in names} | {"L": length},
        {"D": dim},
        num_warps=8,
    )
    return LaunchPlan((Buffer("mean", "fp32", (length,)), Buffer("rstd", "fp32", (length,))), (statistics, quantize))
