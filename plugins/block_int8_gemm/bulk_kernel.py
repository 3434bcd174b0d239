"""W8A8 block-128 GEMM for sm_120: mma.sync fed by bulk tensor copies, in Gluon and PTX.

mma_kernel.py's 128×128 tiles read 5.8 TB/s from L2 at 740 TOPS, which is about what L2 gives: that, not the copies'
instructions, is what they wait for. Here one program of eight warps an SM makes tiles of 128×256, a quarter less to
read, each warp 64×64 of it as there. One thread asks for whole tiles, and mbarriers stand where programs' barriers
would, so that warps drift apart and one's products hide another's scaling, loading and epilogue:

- ``full``: a tile of x, or one of weights, is in its slot. Two slots each, 96 KiB.
- ``empty``: every warp has its fragments of x in registers and is done with the weights before. Only the first warp
  waits for it, one slice of products after it arrived itself, and asks for x two K blocks ahead, for weights one.

A warp loads its next fragments of x behind the products of its last slice. The grid is persistent, and the next
tile's first copies are under way in the epilogue. Sums and their scaling are mma_kernel.py's.

Everything is written for one thread, since Triton would put a barrier around every use of shared memory: a tensor here
has one element a thread, and arrays are tuples of them. bulk_epilogue.py has what follows the products.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from plugins.block_int8_gemm import ptx
from plugins.block_int8_gemm.bulk_epilogue import finish, residuals
from plugins.block_int8_gemm.gluon_parts import BETWEEN, OFFSET, barrier, scaled, tile_of, without_offset
from plugins.gluon_ptx import int8_product, shared_base
from plugins.triton_math import MAGIC_BITS

WARPS = 8
TILE_N = 256
UNIT_N = 64  # N is a multiple of it: the weights' tensor map has rows by this many
SHARED = 97 * 1024  # bytes: two slots of 48 KiB; one KiB of barriers, tensor maps and maxima
MAP_BYTES = 256  # of workspace a program: two tensor maps
SLICES = gl.constexpr(8)  # of 8 columns a warp
X_SLOT = gl.constexpr(128 * 128)
W_SLOT = gl.constexpr(256 * 128)
W_SLOTS = gl.constexpr(2 * 128 * 128)  # where weights' slots start
REST = gl.constexpr(96 * 1024)
FULL_W = gl.constexpr(16)  # from the first barrier on, those of x
EMPTY = gl.constexpr(32)
MAPS = gl.constexpr(128)
MAXIMA = gl.constexpr(512)
MAXIMA_BYTES = gl.constexpr(32)


@gluon.jit
def _fragments(address, FIRST: gl.constexpr, END: gl.constexpr):
    """A warp's fragments of x [64,128], 16 registers for each 32 of K from FIRST to END; address: one a 32 of K."""
    found = ()
    for ks in gl.static_range(FIRST, END):
        for m in gl.static_range(4):
            four = ptx.load_matrices(address[ks] + m * 2048)
            found += (four[0], four[1], four[2], four[3])
    return found


@gluon.jit
def _in_slot(address, slot):
    """The addresses of x's fragments in a slot."""
    found = ()
    for ks in gl.static_range(4):
        found += (address[ks] + slot * X_SLOT,)
    return found


@gluon.jit
def _product(x, w, sums, A: gl.constexpr, B: gl.constexpr, S: gl.constexpr):
    """Four of the sums advanced; of the tuples, each operand's registers from these places on."""
    a = (x[A], x[A + 1], x[A + 2], x[A + 3])
    return int8_product(a, w[B], w[B + 1], sums[S], sums[S + 1], sums[S + 2], sums[S + 3])


@gluon.jit
def _products(x, w, sums, KS: gl.constexpr):
    """The 16 sums advanced by 32 of K."""
    new = ()
    for m in gl.static_range(4):
        four = _product(x, w, sums, KS * 16 + m * 4, KS * 2, m * 4)
        new += (four[0], four[1], four[2], four[3])
    return new


@gluon.jit
def _ask_for_x(base, maps, k, row, slot, pred):
    ptx.copy_box(base + slot * X_SLOT, maps, base + REST + slot * 8, k * 128, row * 128, 0, X_SLOT, pred)


@gluon.jit
def _ask_for_weights(base, maps, k, column, slot, pred):
    to = base + W_SLOTS + slot * W_SLOT
    ptx.copy_box(to, maps + 128, base + REST + FULL_W + slot * 8, k * 128, 0, column * 4, W_SLOT, pred)


@gluon.jit
def _ask(base, maps, warp, k, step, tiles, k_blocks):
    """By the first warp: x two K blocks ahead, weights one, of the next tile where this one ends."""
    row, column, next_row, next_column, last = tiles
    if warp == 0:
        ptx.wait(base + REST + EMPTY, step & 1)
    ends_x = k + 2 >= k_blocks
    ends_w = k + 1 >= k_blocks
    k_x = gl.where(ends_x, k + 2 - k_blocks, k + 2)
    k_w = gl.where(ends_w, 0, k + 1)
    mine = warp == 0
    more = last == 0
    _ask_for_x(base, maps, k_x, gl.where(ends_x, next_row, row), step & 1, (mine & (more | (ends_x == 0))).to(gl.int32))
    _ask_for_weights(
        base,
        maps,
        k_w,
        gl.where(ends_w, next_column, column),
        (step + 1) & 1,
        (mine & (more | (ends_w == 0))).to(gl.int32),
    )


@gluon.jit
def _all(value, COUNT: gl.constexpr):
    """A tuple of one value."""
    found = ()
    for _ in gl.static_range(COUNT):
        found += (value,)
    return found


@gluon.jit
def _set_up(base, maps, x, weight, warp, M, N, K):
    """Barriers and tensor maps; of the weights' the rows come in mma_kernel.py's order (_column_of)."""
    barriers = base + REST
    for i in gl.static_range(4):
        ptx.init_barrier(barriers + i * 8, 1)
    ptx.init_barrier(barriers + EMPTY, 8)
    if warp == 0:
        made = barriers + MAPS
        row = K.to(gl.int64)
        ptx.describe(made, maps, x, K, M, 1, row, row, row, row, 128, 1, 1, 1)
        ptx.describe(made + 128, maps + 128, weight, K, 2, N // 64, row, 8 * row, 2 * row, 64 * row, 2, 8, 4, 4)
    barrier()


@gluon.jit
def _k_block(program, addresses, tiles, x, acc, scale, start, k, step, k_blocks, EXACT: gl.constexpr):
    """The accumulators advanced by a K block, and the next one's fragments of x."""
    base, maps, warp, thread = program
    x_address, w_left, w_right = addresses
    slot = step & 1
    ptx.wait(base + REST + FULL_W + slot * 8, (step >> 1) & 1)
    new = ()
    for i in gl.static_range(SLICES):
        w0 = ptx.load_matrices(w_left + slot * W_SLOT + i * 2048)
        w1 = ptx.load_matrices(w_right + slot * W_SLOT + i * 2048)
        w = (w0[0], w0[1], w0[2], w0[3], w1[0], w1[1], w1[2], w1[3])
        if i == 0:
            ptx.arrive(base + REST + EMPTY, thread)
        if i == 1:
            _ask(base, maps, warp, k, step, tiles, k_blocks)
        if i == SLICES - 1:  # the last one of all waits for what it has
            following = gl.where((k + 1 < k_blocks) | (tiles[4] == 0), step + 1, step)
            ptx.wait(base + REST + (following & 1) * 8, (following >> 1) & 1)
        sums = _all(start, 16)
        x_next = ()
        for ks in gl.static_range(4):
            sums = _products(x, w, sums, ks)
            if i == SLICES - 1:
                x_next += _fragments(_in_slot(x_address, 1 - slot), ks, ks + 1)
        if i == SLICES - 1:
            x = x_next
        for j in gl.static_range(16):
            new += (scaled(acc[i * 16 + j], sums[j], scale, EXACT),)
    return new, x_next


@gluon.jit
def _k_blocks(program, addresses, tiles, x, x_scale, w_scale, start, step, k_blocks, EXACT: gl.constexpr):
    """A tile's accumulators and the sum of scales whose offset they still hold; the next tile's fragments, its step.

    program: address of shared memory, tensor maps, warp and thread; addresses: of the fragments in the first slots;
    tiles: row and column of this tile and the next, and whether this is the last.
    """
    LAYOUT: gl.constexpr = start.type.layout
    acc = _all(gl.zeros([256], gl.float32, LAYOUT), 128)
    scales = 0.0
    for k in range(k_blocks):
        scale = gl.load(x_scale + k) * gl.load(w_scale + k)
        if not EXACT:
            scale *= 2.0**96
        acc, x = _k_block(program, addresses, tiles, x, acc, scale, start, k, step, k_blocks, EXACT)
        step += 1
        if not EXACT:
            scales += scale
            if k % BETWEEN == BETWEEN - 1:
                acc = without_offset(acc, scales, 128)
                scales = 0.0
    return acc, scales, x, step


@gluon.jit
def _addresses(base, warp, lane):
    """Where a thread's fragments lie in the first slots: of x for each 32 of K, of a slice of weights two halves of K.

    Rows of 128 bytes, whose 16-byte pieces are swizzled as tensor copies do it.
    """
    x = ()
    for ks in gl.static_range(4):
        x += (base + (warp // 4 * 64 + lane % 16) * 128 + (((2 * ks + lane // 16) ^ (lane % 8)) * 16),)
    w_rows = (warp % 4 // 2 * 128 + warp % 2 * 8 + lane % 8) * 128
    left = base + W_SLOTS + w_rows + ((lane // 8) ^ (lane % 8)) * 16
    right = base + W_SLOTS + w_rows + ((lane // 8 + 4) ^ (lane % 8)) * 16
    return x, left, right


@gluon.jit
def block_int8_gemm_bulk(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    gate_ptr,
    residual_ptr,
    y_ptr,
    y_scale_ptr,
    maps_ptr,
    M,
    N,
    K,
    group_m,
    EPILOGUE: gl.constexpr,
    EXACT: gl.constexpr,
):
    """y by 128×256 tiles; EPILOGUE is "bias", "gelu" or "residual". Programs beyond one an SM have nothing to do."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [8], [0])
    BYTES: gl.constexpr = gl.BlockedLayout([4], [32], [8], [0])
    k_blocks = gl.cdiv(K, 128)
    n_tiles = gl.cdiv(N, 256)
    shared = gl.allocate_shared_memory(gl.int8, [97, 1024], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    shared.index(96).store(gl.zeros([1024], gl.int8, BYTES))  # its one use that Triton sees keeps it
    barrier()
    base = shared_base()
    warp = ptx.warp_number()
    thread = gl.arange(0, 256, LAYOUT)
    maps = maps_ptr.to(gl.int64) + gl.program_id(0) * 256
    _set_up(base, maps, x_ptr.to(gl.int64), weight_ptr.to(gl.int64), warp, M, N, K)

    m_tiles = gl.cdiv(M, 128)
    stride = gl.minimum(gl.num_programs(0), ptx.sm_count())
    tiles = gl.where(gl.program_id(0) < stride, m_tiles * n_tiles, 0)
    row, column = tile_of(gl.program_id(0), m_tiles, n_tiles, group_m)
    mine = ((warp == 0) & (tiles > 0)).to(gl.int32)
    _ask_for_x(base, maps, 0, row, 0, mine)
    _ask_for_weights(base, maps, 0, column, 0, mine)
    _ask_for_x(base, maps, 1, row, 1, mine)

    addresses = _addresses(base, warp, thread % 32)
    # The residuals that are read at a tile's end need the next tile's fragments' registers, GELU does not.
    KEPT: gl.constexpr = EPILOGUE != "residual"
    if KEPT:
        if tiles > 0:
            ptx.wait(base + REST, 0)
        x = _fragments(addresses[0], 0, 4)
    start = gl.full([256], MAGIC_BITS if EXACT else OFFSET, gl.int32, LAYOUT)
    step = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, stride):
        last = (tile + stride >= tiles).to(gl.int32)
        next_row, next_column = tile_of(gl.minimum(tile + stride, tiles - 1), m_tiles, n_tiles, group_m)
        x_scale = x_scale_ptr + row * k_blocks
        w_scale = weight_scale_ptr + gl.minimum(column * 2 + warp % 4 // 2, gl.cdiv(N, 128) - 1) * k_blocks
        if not KEPT:
            ptx.wait(base + REST + (step & 1) * 8, (step >> 1) & 1)
            x = _fragments(_in_slot(addresses[0], step & 1), 0, 4)
        both = (row, column, next_row, next_column, last)
        acc, scales, x, step = _k_blocks(
            (base, maps, warp, thread),
            addresses,
            both,
            x,
            x_scale,
            w_scale,
            start,
            step,
            k_blocks,
            EXACT,
        )
        old = ()
        if EPILOGUE == "residual":
            old = residuals(residual_ptr, warp, thread, row, column, M, N)
        if not EXACT:
            acc = without_offset(acc, scales, 128)
        finish(
            acc,
            old,
            bias_ptr,
            gate_ptr,
            y_ptr,
            y_scale_ptr,
            base + REST + MAXIMA + turn * MAXIMA_BYTES,
            warp,
            thread,
            row,
            column,
            M,
            N,
            EPILOGUE,
            EXACT,
        )
        row = next_row
        column = next_column
        turn = 1 - turn
