"""What follows the loop of the attention kernels for mma.sync: scaling, the linear branch, the output tile.

As the loop is, it is written for one thread. The accumulator's 128 registers are 16 groups of 8 columns, each two 16
rows of 2 × 2: a thread has four rows, r, r + 8, r + 16 and r + 24 of its warp's 32, and two columns of each group.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from plugins.gluon_ptx import load16
from plugins.sage_attention import ptx_kernel as ptx
from plugins.sage_attention.primitives_kernel import LOG2E as _LOG2E

LOG2E = gl.constexpr(_LOG2E.value)


@gluon.jit
def bf16_product(a, A: gl.constexpr, b, B: gl.constexpr, c, C: gl.constexpr):
    """fp32 c [16,8] + bf16 a [16,16] · b [16,8] of a warp. c: registers from C on; a: A, A + 4, A + 1, A + 5, which of
    two rows with four words each are the first two; b: B, B + 1.
    """
    return gl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [a[A], a[A + 4], a[A + 1], a[A + 5], b[B], b[B + 1], c[C], c[C + 1], c[C + 2], c[C + 3]],
        dtype=(gl.float32, gl.float32, gl.float32, gl.float32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def query_words(q, first_row, head, L, D: gl.constexpr):
    """The warp's 32 queries as 64 words: of 32 channels, the thread's rows, its 8 channels; zeros from row L on."""
    lane = ptx.thread_number_here() % 32
    words = ()
    for group in gl.static_range(4):
        for i in gl.static_range(4):
            row = first_row + i * 8 + lane // 4
            pointer = q + (row.to(gl.int64) * D + (head * 128 + group * 32 + lane % 4 * 8))
            words += load16(pointer.to(gl.int64, bitcast=True), (row < L).to(gl.int32))
    return words


@gluon.jit
def copy_rows(address, x, first, S, STRIDE: gl.constexpr, COUNT: gl.constexpr, MASK: gl.constexpr):
    """Start the copy of COUNT rows of 256 bytes, STRIDE bytes apart, from row ``first`` on; zeros from row S on.

    A row's unit of 16 bytes goes to unit ^ (row % 8), or with MASK 1 to unit ^ (row % 2 · 4): the one keeps ldmatrix's
    rows apart, the other operand_lines' loads.
    """
    thread = ptx.thread_number_here()
    row, unit = thread // 16, thread % 16
    pointer = x.to(gl.int64, bitcast=True) + ((first + row).to(gl.int64) * STRIDE + unit * 16)
    address += row * 256 + (unit ^ (row % 2 * 4 if MASK == 1 else row)) * 16
    for i in gl.static_range(COUNT // 8):
        ptx.copy_or_clear(address, i * 2048, pointer, i * 8 * STRIDE, (first + row + i * 8 < S).to(gl.int32) * 16)


@gluon.jit
def operand_lines(address):
    """Behind what a thread finds its 8 channels of even and of odd groups of 32 in rows that copy_rows left: row
    lane // 4 of eight. Four words are the second operands of two steps.
    """
    lane = ptx.thread_number_here() % 32
    odd = lane // 4 % 2 * 64
    at = address + lane // 4 * 256 + lane % 4 * 16
    return at + odd, at + (64 - odd)


@gluon.jit
def averaged(acc, total):
    """The accumulator, each row divided by its sum. ``total``: the thread's shares."""
    inverse, new = (), ()
    for row in gl.static_range(4):
        sums = total[row] + ptx.from_lane(total[row], 1)
        inverse += (1.0 / (sums + ptx.from_lane(sums, 2)),)
    for i in gl.static_range(128):
        new += (acc[i] * inverse[i // 2 % 4],)
    return new


@gluon.jit
def scaled_values(acc, v_scale, head):
    """The accumulator times the scales of its columns."""
    v_scale += head * 128 + ptx.thread_number_here() % 4 * 2
    scales, new = (), ()
    for i in gl.static_range(32):
        scales += (gl.load(v_scale + (i // 2 * 8 + i % 2)),)
    for i in gl.static_range(128):
        new += (acc[i] * scales[i // 8 * 2 + i % 2],)
    return new


@gluon.jit
def _exponentials(word, shift, low_weight, high_weight, total):
    """e^x · 2^shift of a word's two bf16 numbers x, as a word; and total plus them by their weights."""
    return gl.inline_asm_elementwise(
        "{ .reg .f32 a, b; .reg .b32 l, h; shl.b32 l, $2, 16; and.b32 h, $2, 0xffff0000; mov.b32 a, l; mov.b32 b, h;"
        " fma.rn.f32 a, a, $7, $3; fma.rn.f32 b, b, $7, $3; ex2.approx.ftz.f32 a, a; ex2.approx.ftz.f32 b, b;"
        " cvt.rn.bf16x2.f32 $0, b, a; fma.rn.f32 a, a, $4, $6; fma.rn.f32 $1, b, $5, a; }",
        "=&r,=&f,r,f,f,f,f,f",
        [word, shift, low_weight, high_weight, total, LOG2E],
        dtype=(gl.int32, gl.float32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _feature_words(x, z):
    """e^(q − top) of query_words as bf16 words, and of each row 1 / Σ e^(q − top)·(1e-5 + z). ``z``: of the head."""
    shift = ()
    for row in gl.static_range(4):
        top = gl.to_tensor(float("-inf"))
        for i in gl.static_range(16):
            word = x[i // 4 * 16 + row * 4 + i % 4]
            top = gl.maximum(top, (word << 16).to(gl.float32, bitcast=True))
            top = gl.maximum(top, (word & -65536).to(gl.float32, bitcast=True))
        top = gl.maximum(top, ptx.from_lane(top, 1))
        shift += (-LOG2E * gl.maximum(top, ptx.from_lane(top, 2)),)
    zero, e = gl.to_tensor(0.0), ()
    below = (zero, zero, zero, zero)
    z += ptx.thread_number_here() % 4 * 8
    for group in gl.static_range(4):
        weights = ()
        for c in gl.static_range(8):
            weights += (gl.load(z + (group * 32 + c)) + 1e-5,)
        sums = ()
        for row in gl.static_range(4):
            total = below[row]
            for i in gl.static_range(4):
                word = x[group * 16 + row * 4 + i]
                word, total = _exponentials(word, shift[row], weights[i * 2], weights[i * 2 + 1], total)
                e += (word,)
            sums += (total,)
        below = sums
    inverse = ()
    for row in gl.static_range(4):
        sums = below[row] + ptx.from_lane(below[row], 1)
        inverse += (1.0 / (sums + ptx.from_lane(sums, 2)),)
    return e, inverse


@gluon.jit
def add_linear_branch(acc, q, kv_proj, z, bias, space, q_block, head, L, D: gl.constexpr):
    """acc + φ(q)·KV_proj / (1e-5 + φ(q)·z) + bias: flash_kernel.add_linear_branch; kv_proj is [H,column,channel].

    ``space``: 32 KiB of shared memory that nobody uses any more.
    """
    copy_rows(space, kv_proj + head * (128 * 128), 0, 128, 256, 128, 1)
    ptx.commit()
    x = query_words(q, q_block * 128 + ptx.thread_number_here() // 32 * 32, head, L, D)
    e, inverse = _feature_words(x, z + head * 128)
    ptx.arrived(0)
    even, odd = operand_lines(space)
    bias += ptx.thread_number_here() % 4 * 2
    new = ()
    for pair in gl.static_range(8):
        c = ()
        for _ in gl.static_range(16):
            c += (gl.to_tensor(0.0),)
        for group in gl.static_range(4):
            line = even if group % 2 == 0 else odd
            w = ptx.load_four(line, pair * 4096 + group // 2 * 128)
            w += ptx.load_four(line, pair * 4096 + group // 2 * 128 + 2048)
            for step in gl.static_range(2):
                sums = ()
                for i in gl.static_range(4):  # 8 columns, 16 rows
                    sums += bf16_product(e, group * 16 + i % 2 * 8 + step * 2, w, i // 2 * 4 + step * 2, c, i * 4)
                c = sums
        for i in gl.static_range(16):
            column = pair * 16 + i // 8 * 8 + i % 2
            new += (acc[pair * 16 + i] + ptx.multiply_add(c[i], inverse[i // 2 % 4], gl.load(bias + column)),)
    return new


@gluon.jit
def _largest(acc, space, first_row, L):
    """The largest magnitude of the program's rows before L, at least 1e-8."""
    lane = ptx.thread_number_here() % 32
    amax = gl.to_tensor(1e-8)
    for row in gl.static_range(4):
        top = gl.to_tensor(0.0)
        for i in gl.static_range(32):
            top = gl.maximum(top, gl.abs(acc[i // 2 * 8 + row * 2 + i % 2]))
        amax = gl.maximum(amax, gl.where(first_row + row * 8 + lane // 4 < L, top, 0.0))
    for i in gl.static_range(5):
        amax = gl.maximum(amax, ptx.from_lane(amax, 1 << i))
    ptx.meet()
    ptx.store_word(space + ptx.thread_number_here() // 32 * 4, 0, amax.to(gl.int32, bitcast=True))
    ptx.meet()
    words = ptx.load_four(space)
    for i in gl.static_range(4):
        amax = gl.maximum(amax, words[i].to(gl.float32, bitcast=True))
    ptx.meet()
    return amax


@gluon.jit
def _quantized_pair(a, b, scale):
    """a and b times scale, rounded to int8: the lower half of a word."""
    return gl.inline_asm_elementwise(
        "{ .reg .f32 a, b; .reg .b32 c, d; mul.rn.f32 a, $1, $3; mul.rn.f32 b, $2, $3;"
        " max.f32 a, a, 0fC3000000; max.f32 b, b, 0fC3000000; min.f32 a, a, 0f42FE0000; min.f32 b, b, 0f42FE0000;"
        " add.rn.f32 a, a, 0f4B400000; add.rn.f32 b, b, 0f4B400000; mov.b32 c, a; mov.b32 d, b;"
        " prmt.b32 $0, c, d, 0x0040; }",
        "=r,f,f,f",
        [a, b, scale],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _bf16_pair(a, b):
    """a and b as bf16 in a word."""
    return gl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [a, b], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def store_output(o, o_scale, acc, space, q_block, head, L, D: gl.constexpr, QUANTIZE: gl.constexpr):
    """The rows of the tile that are of the L, to o: bf16, or with QUANTIZE int8 and the tile's scale.

    By way of shared memory, ``space``, that nobody uses any more: a thread has two columns in eight, and stores 16
    bytes. Rows lie 16 bytes further apart than they are long, so that eight of them do not meet in a bank.
    """
    WIDTH: gl.constexpr = 128 if QUANTIZE else 256  # bytes of a row
    STEP: gl.constexpr = WIDTH + 16
    UNITS: gl.constexpr = WIDTH // 16
    thread = ptx.thread_number_here()
    lane, warp = thread % 32, thread // 32
    first_row = q_block * 128 + warp * 32
    if QUANTIZE:
        amax = _largest(acc, space, first_row, L)
        if thread == 0:
            gl.store(o_scale + q_block * (D // 128) + head, amax / 128.0)
        scale = 128.0 / amax
    else:
        ptx.meet()
    space += warp * (32 * STEP)
    at = space + lane // 4 * STEP + lane % 4 * (WIDTH // 64)
    for row in gl.static_range(4):
        for group in gl.static_range(16):
            a, b = acc[group * 8 + row * 2], acc[group * 8 + row * 2 + 1]
            if QUANTIZE:
                ptx.store_half(at, row * 8 * STEP + group * 8, _quantized_pair(a, b, scale))
            else:
                ptx.store_word(at, row * 8 * STEP + group * 16, _bf16_pair(a, b))
    ptx.in_order()
    line = space + lane // UNITS * STEP + lane % UNITS * 16
    row = first_row + lane // UNITS
    pointer = o.to(gl.int64, bitcast=True) + (row.to(gl.int64) * D + head * 128) * (WIDTH // 128) + lane % UNITS * 16
    ROWS: gl.constexpr = 32 // UNITS  # a warp stores at a time
    for i in gl.static_range(32 // ROWS):
        words = ptx.load_four(line, i * ROWS * STEP)
        away = pointer + i * ROWS * D * (WIDTH // 128)
        ptx.store_global(away, words[0], words[1], words[2], words[3], (row + i * ROWS < L).to(gl.int32))
