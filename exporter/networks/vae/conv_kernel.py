"""A convolution in three dimensions as a GEMM for sm_90 in Gluon: a TMA producer warp feeds two consumer warpgroups.

A tile is 16×16 positions of one frame. For each tap of the kernel and each block of channels the producer copies those
positions, moved by the tap, as a box of five dimensions, and TMA puts zeros where the box leaves the frame: nothing is
padded. The frames before the first lie in another allocation, so the box's first dimension is the step from one to the
other. Each consumer owns 8 rows, in two halves of 64 positions; sums start as bias and what is added. The grid is
persistent: a tile's first copies run while the one before is stored.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def _tile(number, n_tiles, phases, tiles_x, T):
    """(column tile, phase, first x, first y, frame): neighbours in time are neighbours in L2."""
    n, number = number % n_tiles, number // n_tiles
    phase, number = number % phases, number // phases
    t, number = number % T, number // T
    return n, phase, (number % tiles_x) * 16, (number // tiles_x) * 16, t


@gluon.jit
def _produce(
    x_boxes,
    weights,
    more_weights,
    a_ring,
    b_ring,
    c_ring,
    full,
    empty,
    tiles,
    tiles_x,
    n_tiles,
    phases,
    T,
    C,
    N,
    frames_before,
    side,
    before,
    N1: gl.constexpr,
    N2: gl.constexpr,
    BK: gl.constexpr,
):
    """Keep the rings full: [256,BK] of x, [N1,BK] and [N2,BK] of the weights."""
    STAGES: gl.constexpr = full.shape[0]
    BOX: gl.constexpr = x_boxes.layout
    step = 0
    for number in range(gl.program_id(0), tiles, gl.num_programs(0)):
        n, phase, x, y, t = _tile(number, n_tiles, phases, tiles_x, T)
        x += phase % 2 - side // 2
        y += phase // 2 - side // 2
        row = phase * (frames_before + 1) * side * side * N + n * (N1 + N2)
        for tap_t in range(frames_before + 1):
            early = t + tap_t < frames_before
            where = gl.where(early, before, 1 - before)
            frame = t + tap_t - gl.where(early, 0, frames_before)
            for tap in range(side * side):
                for c in range(0, C, BK):
                    stage = step % STAGES
                    ready = full.index(stage)
                    mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
                    mbarrier.expect(ready, (256 + N1 + N2) * BK * 2)
                    box = a_ring.index(stage)._reinterpret(gl.bfloat16, [1, 1, 16, 16, BK], BOX)
                    place = [where, frame, y + tap // side, x + tap % side, c]
                    tma.async_copy_global_to_shared(x_boxes, place, ready, box)
                    tma.async_copy_global_to_shared(weights, [row, c], ready, b_ring.index(stage))
                    if N2 > 0:
                        tma.async_copy_global_to_shared(more_weights, [row + N1, c], ready, c_ring.index(stage))
                    step += 1
                row += N


@gluon.jit
def _begin(bias, residual, added, places, inside, first, N, WIDTH: gl.constexpr):
    """[64,WIDTH] fp32 of bias, and of the residual where it is added."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    columns = first + gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))
    offsets = gl.convert_layout(places, gl.SliceLayout(1, LAYOUT))[:, None] * N + columns[None, :]
    mask = gl.convert_layout(inside, gl.SliceLayout(1, LAYOUT))[:, None] & (columns < N)[None, :]
    old = gl.load(residual + offsets, mask=mask & (added != 0), other=0.0).to(gl.float32)
    return old + gl.load(bias + columns, mask=columns < N, other=0.0).to(gl.float32)[None, :]


@gluon.jit
def _store(out, acc, places, inside, first, N, WIDTH: gl.constexpr):
    """Store [64,WIDTH] as bf16, 16 bytes a thread."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    value = gl.convert_layout(acc.to(gl.bfloat16), LAYOUT)
    columns = first + gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))
    offsets = gl.convert_layout(places, gl.SliceLayout(1, LAYOUT))[:, None] * N + columns[None, :]
    mask = gl.convert_layout(inside, gl.SliceLayout(1, LAYOUT))[:, None] & (columns < N)[None, :]
    gl.store(out + offsets, value, mask=mask)


@gluon.jit
def _consume(
    GROUP: gl.constexpr,
    bias,
    residual,
    out,
    a_ring,
    b_ring,
    c_ring,
    full,
    empty,
    tiles,
    tiles_x,
    n_tiles,
    phases,
    T,
    H,
    W,
    C,
    N,
    frames_before,
    side,
    added,
    N1: gl.constexpr,
    N2: gl.constexpr,
    BK: gl.constexpr,
):
    """Rows 8·GROUP… of every tile: ``upper`` and ``lower`` are its halves, N1 columns and N2 more."""
    STAGES: gl.constexpr = full.shape[0]
    ROWS: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N1, 16]))
    steps = (frames_before + 1) * side * side * gl.cdiv(C, BK)
    scale = 1 + phases // 4  # of out's height and width
    step = 0
    for number in range(gl.program_id(0), tiles, gl.num_programs(0)):
        n, phase, x0, y0, t = _tile(number, n_tiles, phases, tiles_x, T)
        n *= N1 + N2
        m = gl.arange(0, 64, ROWS)
        x, y = x0 + m % 16, y0 + GROUP * 8 + m // 16
        in_upper, in_lower = (x < W) & (y < H), (x < W) & (y + 4 < H)
        at_upper = (t.to(gl.int64) * (H * scale) + y * scale + phase // 2) * (W * scale) + x * scale + phase % 2
        at_lower = at_upper + 4 * scale * scale * W
        upper = _begin(bias, residual, added, at_upper, in_upper, n, N, N1)
        lower = _begin(bias, residual, added, at_lower, in_lower, n, N, N1)
        if N2 > 0:
            more_upper = _begin(bias, residual, added, at_upper, in_upper, n + N1, N, N2)
            more_lower = _begin(bias, residual, added, at_lower, in_lower, n + N1, N, N2)
        for k in range(steps):
            stage = step % STAGES
            mbarrier.wait(full.index(stage), (step // STAGES) & 1)
            a_upper = a_ring.index(stage).slice(GROUP * 128, 64, 0)
            a_lower = a_ring.index(stage).slice(GROUP * 128 + 64, 64, 0)
            b = b_ring.index(stage).permute((1, 0))
            upper = warpgroup_mma(a_upper, b, upper, is_async=True)
            lower = warpgroup_mma(a_lower, b, lower, is_async=True)
            if N2 > 0:
                c = c_ring.index(stage).permute((1, 0))
                more_upper = warpgroup_mma(a_upper, c, more_upper, is_async=True)
                more_lower = warpgroup_mma(a_lower, c, more_lower, is_async=True)
                upper, lower, more_upper, more_lower = warpgroup_mma_wait(
                    4, deps=[upper, lower, more_upper, more_lower]
                )
            else:
                upper, lower = warpgroup_mma_wait(2, deps=[upper, lower])
            if k > 0:  # the products of the step before are done: the producer may refill their stage
                mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
            step += 1
        if N2 > 0:
            upper, lower, more_upper, more_lower = warpgroup_mma_wait(0, deps=[upper, lower, more_upper, more_lower])
        else:
            upper, lower = warpgroup_mma_wait(0, deps=[upper, lower])
        mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
        _store(out, upper, at_upper, in_upper, n, N, N1)
        _store(out, lower, at_lower, in_lower, n, N, N1)
        if N2 > 0:
            _store(out, more_upper, at_upper, in_upper, n + N1, N, N2)
            _store(out, more_lower, at_lower, in_lower, n + N1, N, N2)


@gluon.jit(
    do_not_specialize=(
        "tiles",
        "tiles_x",
        "n_tiles",
        "phases",
        "T",
        "H",
        "W",
        "frames_before",
        "side",
        "before",
        "added",
    )
)
def conv_hopper(
    x_boxes,
    weights,
    more_weights,
    bias,
    residual,
    out,
    tiles,
    tiles_x,
    n_tiles,
    phases,
    T,
    H,
    W,
    C,
    N,
    frames_before,
    side,
    before,
    added,
    N1: gl.constexpr,
    N2: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
):
    """out by tiles of 256 positions and N1 + N2 columns. ``before``: which of the boxes' allocations comes first."""
    TILE: gl.constexpr = gl.NVMMASharedLayout(BK * 2, 16, 2)
    a_ring = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 256, BK], TILE)
    b_ring = gl.allocate_shared_memory(gl.bfloat16, [STAGES, N1, BK], TILE)
    c_ring = gl.allocate_shared_memory(gl.bfloat16, [STAGES, N2, BK], TILE) if N2 > 0 else b_ring
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    # Two consumers, then the producer; Triton's compiler reads no starred arguments.
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    0,
                    bias,
                    residual,
                    out,
                    a_ring,
                    b_ring,
                    c_ring,
                    full,
                    empty,
                    tiles,
                    tiles_x,
                    n_tiles,
                    phases,
                    T,
                    H,
                    W,
                    C,
                    N,
                    frames_before,
                    side,
                    added,
                    N1,
                    N2,
                    BK,
                ),
            ),
            (
                _consume,
                (
                    1,
                    bias,
                    residual,
                    out,
                    a_ring,
                    b_ring,
                    c_ring,
                    full,
                    empty,
                    tiles,
                    tiles_x,
                    n_tiles,
                    phases,
                    T,
                    H,
                    W,
                    C,
                    N,
                    frames_before,
                    side,
                    added,
                    N1,
                    N2,
                    BK,
                ),
            ),
            (
                _produce,
                (
                    x_boxes,
                    weights,
                    more_weights,
                    a_ring,
                    b_ring,
                    c_ring,
                    full,
                    empty,
                    tiles,
                    tiles_x,
                    n_tiles,
                    phases,
                    T,
                    C,
                    N,
                    frames_before,
                    side,
                    before,
                    N1,
                    N2,
                    BK,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )
