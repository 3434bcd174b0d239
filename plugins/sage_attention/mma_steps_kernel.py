"""The products and probabilities of flash_attention_mma's loop, as one warp issues them (see mma_kernel.py)."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from plugins.gluon_ptx import int8_product
from plugins.sage_attention import ptx_kernel as ptx
from plugins.triton_math import MAGIC_BITS


@gluon.jit
def _product(p, A: gl.constexpr, w, B: gl.constexpr, c0, c1, PV: gl.constexpr):
    """FP16 c [16,8] + a·b of a warp: a [16,32] in p from A on and b [32,8] in w FP8, or a [16,16] and b [16,8] FP16."""
    if PV == "fp8":
        result = gl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16 {$0, $1}, {$2, $3, $4, $5}, {$6, $7}, {$8, $9};",
            "=r,=r,r,r,r,r,r,r,r,r",
            [p[A], p[A + 1], p[A + 2], p[A + 3], w[B], w[B + 1], c0, c1],
            dtype=(gl.int32, gl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        result = gl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {$0, $1}, {$2, $3, $4, $5}, {$6, $7}, {$8, $9};",
            "=r,=r,r,r,r,r,r,r,r,r",
            [p[A], p[A + 1], p[A + 2], p[A + 3], w[B], w[B + 1], c0, c1],
            dtype=(gl.int32, gl.int32),
            is_pure=False,
            pack=1,
        )
    return result


@gluon.jit
def _added(x, y, halves):
    """x, y plus the two FP16 numbers of a word."""
    return gl.inline_asm_elementwise(
        "{ .reg .b16 l, h; .reg .f32 a, b; mov.b32 {l, h}, $4; cvt.f32.f16 a, l; cvt.f32.f16 b, h;"
        " add.rn.f32 $0, $2, a; add.rn.f32 $1, $3, b; }",
        "=f,=f,f,f,r",
        [x, y, halves],
        dtype=(gl.float32, gl.float32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _exponentials(s, AT: gl.constexpr, scale, shift):
    """2^(s·scale + shift) of two neighbouring scores."""
    return gl.inline_asm_elementwise(
        "{ .reg .f32 a, b; fma.rn.f32 a, $2, $4, $5; fma.rn.f32 b, $3, $4, $5;"
        " ex2.approx.ftz.f32 $0, a; ex2.approx.ftz.f32 $1, b; }",
        "=f,=f,r,r,f,f",
        [s[AT], s[AT + 1], scale, shift],
        dtype=(gl.float32, gl.float32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _word(e, i: gl.constexpr, total, PV: gl.constexpr):
    """Word i of the probabilities e, four FP8 or two FP16, and total plus them before rounding."""
    if PV == "fp8":
        result = gl.inline_asm_elementwise(
            "{ .reg .f32 a, b; .reg .b16 l, h;"
            " cvt.rn.satfinite.e4m3x2.f32 l, $3, $2; cvt.rn.satfinite.e4m3x2.f32 h, $5, $4; mov.b32 $0, {l, h};"
            " add.rn.f32 a, $2, $3; add.rn.f32 b, $4, $5; add.rn.f32 a, a, b; add.rn.f32 $1, $6, a; }",
            "=&r,=f,f,f,f,f,f",
            [e[4 * i], e[4 * i + 1], e[4 * i + 2], e[4 * i + 3], total],
            dtype=(gl.int32, gl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        result = gl.inline_asm_elementwise(
            "{ .reg .f32 a; cvt.rn.f16x2.f32 $0, $3, $2; add.rn.f32 a, $2, $3; add.rn.f32 $1, $4, a; }",
            "=&r,=f,f,f,f",
            [e[2 * i], e[2 * i + 1], total],
            dtype=(gl.int32, gl.float32),
            is_pure=False,
            pack=1,
        )
    return result


@gluon.jit
def rescaled(word, alpha, PV: gl.constexpr):
    """A word of probabilities times alpha."""
    if PV == "fp8":
        result = gl.inline_asm_elementwise(
            "{ .reg .b16 l, h, s; .reg .b32 a, b, f; cvt.rn.f16.f32 s, $2; mov.b32 f, {s, s}; mov.b32 {l, h}, $1;"
            " cvt.rn.f16x2.e4m3x2 a, l; cvt.rn.f16x2.e4m3x2 b, h; mul.rn.f16x2 a, a, f; mul.rn.f16x2 b, b, f;"
            " cvt.rn.satfinite.e4m3x2.f16x2 l, a; cvt.rn.satfinite.e4m3x2.f16x2 h, b; mov.b32 $0, {l, h}; }",
            "=r,r,f",
            [word, alpha],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        result = gl.inline_asm_elementwise(
            "{ .reg .b16 s; .reg .b32 f; cvt.rn.f16.f32 s, $2; mov.b32 f, {s, s}; mul.rn.f16x2 $0, $1, f; }",
            "=r,r,f",
            [word, alpha],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )
    return result


@gluon.jit
def _replaced(x, AT: gl.constexpr, new):
    """The tuple x of four, new in one place."""
    y = ()
    for i in gl.static_range(4):
        y += (new if i == AT else x[i],)
    return y


@gluon.jit
def _slot(SLOT: gl.constexpr, s, scale, shift, e, p, total, PV: gl.constexpr):
    """A sixteenth of a chunk's probabilities: begin two exponentials, and make those begun before into a word of p.

    A word's number counts, from the fastest, rows r and r + 8, groups of 8 keys (FP8: pairs of groups), 16 rows: words
    are the product's first operand.
    """
    if PV == "fp8":
        AT: gl.constexpr = SLOT // 4 % 2 * 16 + SLOT % 2 * 8 + SLOT // 8 * 4 + SLOT // 2 % 2 * 2
        ROW: gl.constexpr = SLOT // 8 * 2 + SLOT // 2 % 2
    else:
        AT: gl.constexpr = SLOT // 2 % 4 * 8 + SLOT // 8 * 4 + SLOT % 2 * 2
        ROW: gl.constexpr = SLOT // 8 * 2 + SLOT % 2
    if SLOT < 16:
        e += _exponentials(s, AT, scale, shift[ROW])
    WORDS: gl.constexpr = 8 if PV == "fp8" else 16
    NUMBER: gl.constexpr = SLOT * WORDS // 16 - 1
    if NUMBER >= 0 and (PV != "fp8" or SLOT % 2 == 0):
        OLD: gl.constexpr = NUMBER // (WORDS // 2) * 2 + NUMBER % 2
        word, new = _word(e, NUMBER, total[OLD], PV)
        p += (word,)
        total = _replaced(total, OLD, new)
    return e, p, total


@gluon.jit
def _two_products(keys, queries, j: gl.constexpr, step: gl.constexpr, sums):
    """Sums of 8 keys and both 16 rows, advanced by a step of 32 channels; keys: of 4 × 8 and half of the channels."""
    a, b = (queries[0], queries[1], queries[2], queries[3]), (queries[4], queries[5], queries[6], queries[7])
    w, w2 = keys[j * 4 + step * 2], keys[j * 4 + step * 2 + 1]
    first = int8_product(a, w, w2, sums[j * 8], sums[j * 8 + 1], sums[j * 8 + 2], sums[j * 8 + 3])
    return first + int8_product(b, w, w2, sums[j * 8 + 4], sums[j * 8 + 5], sums[j * 8 + 6], sums[j * 8 + 7])


@gluon.jit
def scores(q, k):
    """Scores of 32 keys as 32 registers (8 keys each: two 16 rows of 2 × 2)."""
    sums = ()
    for _ in gl.static_range(32):
        sums += (gl.to_tensor(MAGIC_BITS),)
    for half in gl.static_range(2):
        ptx.in_order()
        keys = ()
        for j in gl.static_range(4):
            keys += ptx.load_four(k, half * 4096 + j * 512)
        for step in gl.static_range(2):
            queries = ptx.load_four(q, half * 8192 + step * 512)
            queries += ptx.load_four(q, half * 8192 + step * 512 + 1024)
            new = ()
            for j in gl.static_range(4):
                new += _two_products(keys, queries, j, step, sums)
            sums = new
    return sums


@gluon.jit
def scores_beside(q, k, s, scale, shift, total, PV: gl.constexpr):
    """Scores of 32 keys, and among the products the probabilities of the 32 keys whose scores are s. Returns scores,
    probabilities, total.

    16 keys after 16: half of s is done with before the second half of the scores takes registers.
    """
    found, e, p = (), (), ()
    for part in gl.static_range(2):
        sums = ()
        for _ in gl.static_range(16):
            sums += (gl.to_tensor(MAGIC_BITS),)
        for half in gl.static_range(2):
            ptx.in_order()
            keys = ptx.load_four(k, half * 4096 + part * 1024)
            keys += ptx.load_four(k, half * 4096 + part * 1024 + 512)
            for step in gl.static_range(2):
                ptx.in_order()
                queries = ptx.load_four(q, half * 8192 + step * 512)
                queries += ptx.load_four(q, half * 8192 + step * 512 + 1024)
                new = ()
                for j in gl.static_range(2):
                    new += _two_products(keys, queries, j, step, sums)
                    e, p, total = _slot(part * 8 + half * 4 + step * 2 + j, s, scale, shift, e, p, total, PV)
                sums = new
        found += sums
    e, p, total = _slot(16, s, scale, shift, e, p, total, PV)
    return found, p, total


@gluon.jit
def probabilities(s, scale, shift, total, PV: gl.constexpr):
    """The probabilities of 32 keys whose scores are s, and total."""
    e, p = (), ()
    for slot in gl.static_range(17):
        e, p, total = _slot(slot, s, scale, shift, e, p, total, PV)
    return p, total


@gluon.jit
def _steps(c, p, A: gl.constexpr, w, B: gl.constexpr, PV: gl.constexpr):
    """The sums c of a group's tiles, 8 columns by both 16 rows each, advanced by one step: operands from A and B on."""
    new = ()
    for i in gl.static_range(len(c) // 2):
        new += _product(p, i % 2 * (len(p) // 2) + A, w, i // 2 * 4 + B, c[2 * i], c[2 * i + 1], PV)
    return new


@gluon.jit
def _folded(acc, c, AT: gl.constexpr, tile: gl.constexpr):
    """Four registers of acc, those of a group's tile, plus its sums in FP16; the group's start at AT."""
    at: gl.constexpr = AT + tile * 4
    return _added(acc[at], acc[at + 1], c[tile * 2]) + _added(acc[at + 2], acc[at + 3], c[tile * 2 + 1])


@gluon.jit
def _values(v, unit: gl.constexpr, PV: gl.constexpr):
    """Words of v for a group of 16 columns and, in FP16, half of the keys."""
    HALVES: gl.constexpr = 1 if PV == "fp8" else 2
    w = ()
    ptx.in_order()
    for n in gl.static_range(2):
        w += ptx.load_four(v, unit % HALVES * 8192 + (unit // HALVES * 2 + n) * 512)
    return w


@gluon.jit
def products(acc, p, p2, v, PV: gl.constexpr):
    """The accumulator plus p·v of 64 keys, from the probabilities of each 32.

    In groups of 16 columns, so that a product does not wait for the one before. Values are loaded one group ahead, and
    a group's sums are added to the accumulator among the products of the next one.
    """
    HALVES: gl.constexpr = 1 if PV == "fp8" else 2
    STEPS: gl.constexpr = 2 * HALVES
    new, old = (), ()
    w = _values(v, 0, PV)
    for g in gl.static_range(8):
        c = ()
        for _ in gl.static_range(8):
            c += (gl.to_tensor(0),)
        for step in gl.static_range(STEPS):
            if step % 2 == 0 and g * HALVES + step // 2 < 8 * HALVES - 1:
                ahead = _values(v, g * HALVES + step // 2 + 1, PV)
            c = _steps(c, p if step < HALVES else p2, step % HALVES * 4, w, step % 2 * 2, PV)
            if len(old) > 0:
                for tile in gl.static_range(4 // STEPS):
                    new += _folded(acc, old, (g - 1) * 16, step * (4 // STEPS) + tile)
            if step % 2 == 1:
                w = ahead
        old = c
    for tile in gl.static_range(4):
        new += _folded(acc, old, 7 * 16, tile)
    return new
