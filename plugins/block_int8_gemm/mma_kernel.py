"""W8A8 block-128 GEMM for parts with mma.sync and cp.async (sm_80, 86, 89; sm_120 where bulk_kernel.py ends) in Gluon.

A program of four warps makes one 128×128 tile of y, each warp 64×64 of it. A K block of x goes through shared memory
into registers (64 a thread) and is multiplied by eight slices of 16 weight rows, so that int32 sums take 16 registers,
not 128, beside the 128 of fp32: nothing spills. As x leaves shared memory at once, one tile of x and two of weights,
48 KiB, keep the next K block on its way while two programs share an SM of 99 KiB: one's products hide the other's
waiting.

The sums of a block stay below 2^22 in magnitude, so they turn into fp32 without a conversion instruction:

- exact: they start at the bits of 1.5·2^23, and subtracting that number leaves the sum; then acc += sum·scale.
- offset: they start at 2^21 ≥ |sum| and are read as the denormal (2^21 + sum)·2^-149, one fused multiply-add by
  scale·2^96 an element; 2^21·Σ scales is subtracted every four K blocks. A block rounds by less than a unit of its
  int32 sums: 2e-5 of the result where those are near 1e4, as normal numbers give, 1e-4 at 1e3. That is well below
  bf16's 2^-9, but not below what int8 outputs' scales are held to.

On Hopper, where these kernels are measured (the parts they are for are slower at products and no slower at fp32), an
FFMA costs mma.sync a cycle and more of its 6: in the same run 744 TOPS with offset, 690 to 720 exact.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from plugins.block_int8_gemm.gluon_parts import (
    BETWEEN,
    OFFSET,
    barrier,
    gelu_tanh,
    scaled,
    tile_of,
    without_offset,
)
from plugins.triton_math import MAGIC, MAGIC_BITS

WARPS = 4
SHARED = 3 * 128 * 128  # bytes: a tile of x, two of weights
PART = gl.constexpr(16)  # rows that the warps copy at a time, 16 bytes a thread
SLICES = gl.constexpr(8)  # of 16 weight rows, eight for each half of the warps


@gluon.jit
def _column_of(row):
    """The tile's column whose weights lie in this row of the shared tile.

    Of a slice's 16 rows the first eight are the left warps'. A thread's accumulators of four slices are eight
    neighbouring columns, so that it stores 16 bytes of bf16 at once: part 4h + s, pair t of columns 64h + 8t + 2s.
    """
    pair = row % 8 // 2 * 8 + row % 2
    warp = row // 8 % 2 * 32
    part = row // 16
    return part // 4 * 64 + warp + part % 4 * 2 + pair


@gluon.jit
def _addresses(base, columns_of: gl.constexpr, left, K: gl.constexpr, RAGGED: gl.constexpr, COPY: gl.constexpr):
    """Pointers [128,128] to a K block of a tile's rows: one address a thread and constants, where no row is ragged."""
    rows = gl.arange(0, 128, gl.SliceLayout(1, COPY))
    if RAGGED:
        offsets = gl.minimum(columns_of(rows), left - 1) * K
        pointers = base + offsets[:, None]
    else:
        pointers = base + (columns_of(rows % PART) * K)[:, None] + (columns_of(rows // PART * PART) * K)[:, None]
    return pointers + gl.arange(0, 128, gl.SliceLayout(0, COPY))[None, :]


@gluon.jit
def _itself(row):
    return row


@gluon.jit
def _copy(tile, pointers, k, rows_left, K: gl.constexpr, MASKED: gl.constexpr):
    """Start copying K block k; zeros past the last of rows_left rows, if MASKED, and past K."""
    inside = gl.arange(0, 128, gl.SliceLayout(0, pointers.type.layout)) < K - k * 128
    rows = gl.arange(0, 128, gl.SliceLayout(1, pointers.type.layout))
    if MASKED and K % 128 != 0:
        mask = (rows < rows_left)[:, None] & inside[None, :]
        async_copy.async_copy_global_to_shared(tile, pointers + k * 128, mask=mask)
    elif MASKED:
        everywhere = gl.arange(0, 128, gl.SliceLayout(0, pointers.type.layout)) < 128
        mask = (rows < rows_left)[:, None] & everywhere[None, :]
        async_copy.async_copy_global_to_shared(tile, pointers + k * 128, mask=mask)
    elif K % 128 != 0:
        mask = (rows < 128)[:, None] & inside[None, :]
        async_copy.async_copy_global_to_shared(tile, pointers + k * 128, mask=mask)
    else:
        async_copy.async_copy_global_to_shared(tile, pointers + k * 128)


@gluon.jit
def _slices(a, weights, acc, scale, FIRST: gl.constexpr, END: gl.constexpr, EXACT: gl.constexpr):
    """The accumulators, each [128,16], with those from FIRST to END advanced by a K block."""
    LAYOUT: gl.constexpr = acc[0].type.layout
    start = gl.full([128, PART], MAGIC_BITS if EXACT else OFFSET, gl.int32, LAYOUT)
    new = ()
    for i in gl.static_range(SLICES):
        if i >= FIRST and i < END:
            b = weights.slice(i * PART, PART, 0).permute((1, 0)).load(gl.DotOperandLayout(1, LAYOUT, 4))
            new += (scaled(acc[i], mma_v2(a, b, start), scale, EXACT),)
        else:
            new += (acc[i],)
    return new


@gluon.jit
def _multiplied(
    x_pointers,
    weight_pointers,
    x_scale_ptr,
    weight_scale_ptr,
    rows_left,
    K: gl.constexpr,
    EARLY: gl.constexpr,
    EXACT: gl.constexpr,
):
    """The tile's eight accumulators, fp32 [128,16] in _column_of's order."""
    K_BLOCKS: gl.constexpr = (K + 127) // 128
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [2, 2], [16, 8])
    TILE: gl.constexpr = gl.SwizzledSharedLayout(16, 1, 8, [1, 0])
    x_tile = gl.allocate_shared_memory(gl.int8, [128, 128], TILE)
    weight_tiles = gl.allocate_shared_memory(gl.int8, [2, 128, 128], TILE)
    acc = ()
    for _ in gl.static_range(SLICES):
        acc += (gl.zeros([128, PART], gl.float32, LAYOUT),)
    _copy(x_tile, x_pointers, 0, rows_left, K, True)
    _copy(weight_tiles.index(0), weight_pointers, 0, 128, K, False)
    async_copy.commit_group()
    scales = 0.0
    for k in range(K_BLOCKS):
        scale = gl.load(x_scale_ptr + k) * gl.load(weight_scale_ptr + k)
        if not EXACT:
            scale *= 2.0**96
        async_copy.wait_group(0)
        barrier()
        if k + 1 < K_BLOCKS:
            _copy(weight_tiles.index((k + 1) % 2), weight_pointers, k + 1, 128, K, False)
        if EARLY > 0:
            barrier()  # Triton puts one before the first read of weights, taking both tiles for one; here none waits
        a = x_tile.load(gl.DotOperandLayout(0, LAYOUT, 4))
        acc = _slices(a, weight_tiles.index(k % 2), acc, scale, 0, EARLY, EXACT)
        barrier()  # every warp has its x in registers
        if k + 1 < K_BLOCKS:
            _copy(x_tile, x_pointers, k + 1, rows_left, K, True)
        async_copy.commit_group()
        acc = _slices(a, weight_tiles.index(k % 2), acc, scale, EARLY, SLICES, EXACT)
        if not EXACT:
            scales += scale
            if k % BETWEEN == BETWEEN - 1:
                acc = without_offset(acc, scales, SLICES)
                scales = 0.0
    if not EXACT:
        acc = without_offset(acc, scales, SLICES)
    return acc


@gluon.jit
def _half(acc, i: gl.constexpr):
    """[128,64]: 64 columns of the tile in order, from four accumulators."""
    q = gl.join(gl.join(acc[i], acc[i + 2]), gl.join(acc[i + 1], acc[i + 3]))  # [128, 16, slice bit 1, slice bit 0]
    q = gl.permute(gl.reshape(q, [128, 2, 4, 2, 2, 2]), (0, 1, 2, 4, 5, 3))  # warp, pair, slice bits, of the pair
    return gl.reshape(q, [128, 64])


@gluon.jit
def _in_order(acc):
    """[128,128]: the tile, its columns in order. Each thread keeps its elements; the layout says in which order."""
    LAYOUT: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 64], [8, 0], [32, 0], [64, 0]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[0, 32], [16, 0]],
        [],
        [128, 128],
    )
    q = gl.permute(gl.join(_half(acc, 0), _half(acc, 4)), (0, 2, 1))
    return gl.convert_layout(gl.reshape(q, [128, 128]), LAYOUT)


@gluon.jit
def block_int8_gemm_mma(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    gate_ptr,
    residual_ptr,
    y_ptr,
    y_scale_ptr,
    M,
    N,
    group_m,
    K: gl.constexpr,
    EPILOGUE: gl.constexpr,
    RAGGED_N: gl.constexpr,
    EARLY: gl.constexpr,
    EXACT: gl.constexpr,
):
    """One 128×128 tile of y; EPILOGUE is "bias", "gelu" or "residual". EARLY slices are multiplied before x's tile is
    given back.
    """
    K_BLOCKS: gl.constexpr = (K + 127) // 128
    n_blocks = gl.cdiv(N, 128)
    COPY: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    row_tile, column_tile = tile_of(gl.program_id(0), gl.cdiv(M, 128), n_blocks, group_m)
    x = x_ptr + row_tile.to(gl.int64) * 128 * K
    weight = weight_ptr + column_tile.to(gl.int64) * 128 * K
    acc = _multiplied(
        _addresses(x, _itself, 128, K, False, COPY),
        _addresses(weight, _column_of, N - column_tile * 128, K, RAGGED_N, COPY),
        x_scale_ptr + row_tile * K_BLOCKS,
        weight_scale_ptr + column_tile * K_BLOCKS,
        M - row_tile * 128,
        K,
        EARLY,
        EXACT,
    )
    y = _in_order(acc)
    LAYOUT: gl.constexpr = y.type.layout
    if not EXACT:
        y *= 2.0**53
    rows = row_tile * 128 + gl.arange(0, 128, gl.SliceLayout(1, LAYOUT))
    columns = column_tile * 128 + gl.arange(0, 128, gl.SliceLayout(0, LAYOUT))
    offsets = rows.to(gl.int64)[:, None] * N + columns[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    y += gl.load(bias_ptr + columns, mask=columns < N, other=0.0)[None, :]
    if EPILOGUE == "gelu":
        y = gl.where(inside, gelu_tanh(y), 0.0)
        amax = gl.maximum(gl.max(gl.max(gl.abs(y), 1), 0), 1e-8)
        q = gl.minimum(gl.maximum(y * (128.0 / amax), -128.0), 127.0)
        gl.store(y_ptr + offsets, (q + MAGIC).to(gl.int32, bitcast=True).to(gl.int8), mask=inside)
        gl.store(y_scale_ptr + row_tile * n_blocks + column_tile, amax / 128.0)
    else:
        if EPILOGUE == "residual":
            gate = gl.load(gate_ptr + columns, mask=columns < N, other=0.0)
            y = gl.load(residual_ptr + offsets, mask=inside, other=0.0).to(gl.float32) + gate[None, :] * y
        gl.store(y_ptr + offsets, y.to(gl.bfloat16), mask=inside)
