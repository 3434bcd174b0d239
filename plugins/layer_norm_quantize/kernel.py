"""LayerNorm + modulation + block-128 quantization in Triton: x is read from memory once, and once more from L2.

A block's scale needs the statistics of 128 rows, 1.3 MB of x at D = 5,120: no SM holds them. So one launch has two
kinds of programs, some for the statistics of a few rows each and one for each block, in an order where a row block is
quantized a fixed number of programs after its statistics were begun: x is still in L2 then, and nobody waits long.

A program waits only for programs of lower number. CUDA does not promise that those start first, but its hardware
starts them in order, which CUB's scans rely on too; numbers drawn from a counter instead cost a tenth of the time.
Bytes needed: 2·L·D read and L·D written. On an H100 2.4 TB/s of those at D = 5,120, by two passes over memory 1.8.
hopper.py has the kernel that sm_90 runs; this file has every other SM's, and the plans.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from plugins.expr import ceil_div
from plugins.layer_norm_quantize import hopper
from plugins.plan_builder import Buffer, Dim, Launch, LaunchPlan
from plugins.triton_math import MAGIC

#: Programs from a row block's statistics to its quantization, by SM: more than run at once, few enough for x to stay in
#: L2 in between (sm_86's parts have 6 MB of it, the others 40 and more).
PROGRAMS_BETWEEN: Mapping[int, int] = {86: 256}
_PROGRAMS_BETWEEN = 512


@triton.jit
def zero_counters(counters, COUNT, BLOCK: tl.constexpr):
    """counters int32 [COUNT] = 0."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(counters + i, tl.zeros([BLOCK], tl.int32), mask=i < COUNT)


@triton.jit
def _statistics(x_ptr, mean_ptr, rstd_ptr, first, L, D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Mean and reciprocal standard deviation of ROWS rows, over exactly D elements, in two passes over registers."""
    CHUNKS: tl.constexpr = (D + CHUNK - 1) // CHUNK
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, CHUNK)
    pointers = x_ptr + tl.minimum(rows, L - 1).to(tl.int64)[:, None] * D + columns[None, :]
    parts = ()
    for c in tl.static_range(CHUNKS):
        if D % CHUNK == 0:
            parts += (tl.load(pointers + c * CHUNK),)
        else:
            parts += (tl.load(pointers + c * CHUNK, mask=(columns < D - c * CHUNK)[None, :], other=0.0),)
    total = tl.zeros([ROWS, CHUNK], tl.float32)
    for c in tl.static_range(CHUNKS):
        total += parts[c].to(tl.float32)
    mean = tl.sum(total, axis=1) / D
    squares = tl.zeros([ROWS, CHUNK], tl.float32)
    for c in tl.static_range(CHUNKS):
        centered = parts[c].to(tl.float32) - mean[:, None]
        if D % CHUNK != 0:
            centered = tl.where((columns < D - c * CHUNK)[None, :], centered, 0.0)
        squares += centered * centered
    tl.store(mean_ptr + rows, mean, mask=rows < L)
    tl.store(rstd_ptr + rows, 1.0 / tl.sqrt(tl.sum(squares, axis=1) / D + 1e-6), mask=rows < L)


@triton.jit
def _quantize(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    y_scale_ptr,
    done,
    expected,
    row_block,
    column_block,
    L,
    D: tl.constexpr,
):
    """One 128×128 block of the result, once ``expected`` programs have added to the counter ``done``."""
    rows = row_block * 128 + tl.arange(0, 128)
    columns = column_block * 128 + tl.arange(0, 128)
    inside = (rows < L)[:, None]
    if D % 128 != 0:
        inside = inside & (columns < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * D + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_first")
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=columns < D, other=0.0)
    while tl.atomic_add(done, 0, sem="acquire") < expected:
        pass
    tl.debug_barrier()
    # Past L1, whose lines may be older.
    mean = tl.load(mean_ptr + rows, mask=rows < L, other=0.0, cache_modifier=".cg")
    rstd = tl.load(rstd_ptr + rows, mask=rows < L, other=0.0, cache_modifier=".cg")
    y = ((x.to(tl.float32) - mean[:, None]) * rstd[:, None]) * weight[None, :] + bias[None, :]
    y = tl.where(inside, y, 0.0)
    amax = tl.maximum(tl.max(tl.abs(y)), 1e-8)
    # The least is −128·(1 + 2⁻²³), which rounds to −128.
    q = tl.minimum(y * tl.div_rn(128.0, amax), 127.0) + MAGIC
    tl.store(y_ptr + offsets, q.to(tl.int32, bitcast=True).to(tl.int8), mask=inside, eviction_policy="evict_first")
    tl.store(y_scale_ptr + row_block * ((D + 127) // 128) + column_block, amax / 128.0)


@triton.jit
def layer_norm_quantize(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    y_scale_ptr,
    mean_ptr,
    rstd_ptr,
    counters,
    L,
    lag,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Group g of programs: the statistics of row block g, ROWS rows a program, then the blocks of row block g − lag.

    ``counters``, int32 and zero: how many programs have stored a row block's statistics.
    """
    WRITERS: tl.constexpr = 128 // ROWS
    D_BLOCKS: tl.constexpr = (D + 127) // 128
    group = tl.program_id(0) // (WRITERS + D_BLOCKS)
    part = tl.program_id(0) % (WRITERS + D_BLOCKS)
    if part < WRITERS:
        first = group * 128 + part * ROWS
        if first < L:
            _statistics(x_ptr, mean_ptr, rstd_ptr, first, L, D, ROWS, CHUNK)
            tl.debug_barrier()  # every thread's statistics before the one thread that says so
            tl.atomic_add(counters + group, 1, sem="release")
    elif group >= lag:
        row_block = group - lag
        expected = tl.minimum(WRITERS, tl.cdiv(L - row_block * 128, ROWS))
        _quantize(
            x_ptr,
            mean_ptr,
            rstd_ptr,
            weight_ptr,
            bias_ptr,
            y_ptr,
            y_scale_ptr,
            counters + row_block,
            expected,
            row_block,
            part - WRITERS,
            L,
            D,
        )


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


def _chunk(dim: int) -> int:
    """Columns that a program takes at a time: the largest power of two in D up to 1,024, or 128 and a masked rest."""
    return max((size for size in (1024, 512, 256, 128) if dim % size == 0), default=128)


def launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of LayerNormQuantize."""
    length, dim = dims["L"], dims["D"]
    if not isinstance(dim, int):
        raise TypeError(f"LayerNormQuantize: D is {dim}, expected a number")
    if sm == 90 and dim % 256 == 0:
        return _hopper_plan(length, dim)
    rows, warps, registers = 8 if dim <= 2048 else 4, 4, 168  # at 168 three programs share an SM
    programs = 128 // rows + -(-dim // 128)  # of a row block
    lag = -(-PROGRAMS_BETWEEN.get(sm, _PROGRAMS_BETWEEN) // programs)
    blocks = ceil_div(length, 128)
    clear = Launch(
        zero_counters, (ceil_div(blocks, 1024), 1, 1), {"counters": "counters", "COUNT": blocks}, {"BLOCK": 1024}
    )
    args: dict[str, str | Dim] = {
        f"{name}_ptr": name for name in ("x", "weight", "bias", "y", "y_scale", "mean", "rstd")
    }
    quantize = Launch(
        layer_norm_quantize,
        ((blocks + lag) * programs, 1, 1),
        args | {"counters": "counters", "L": length, "lag": lag},
        {"D": dim, "ROWS": rows, "CHUNK": _chunk(dim)},
        num_warps=warps,
        max_registers=registers,
    )
    buffers = (
        Buffer("mean", "fp32", (length,)),
        Buffer("rstd", "fp32", (length,)),
        Buffer("counters", "int32", (blocks,)),
    )
    return LaunchPlan(buffers, (clear, quantize))
