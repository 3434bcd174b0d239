"""Dense bf16 attention for the parts with mma.sync and cp.async (sm_80, 86, 89, 120), in Gluon and PTX.

As in mma_kernel four warps hold 32 queries each and everything is written for one thread, but here the queries stay in
registers: shared memory, which k and v alone keep busy for two thirds of the products' time, would be what binds.

- No running maximum. Probabilities are 2^score as long as every row's sum stays within 2^±96, where neither fp32 nor
  bf16 loses anything: exponents of a softmax cancel. A program in which one does not starts again with its rows' true
  maxima, which takes it a pass over the keys more.
- 32 keys a step, three steps in shared memory: k [32,128] and v [32,128] as they lie in global memory, in units of 16
  bytes that are swapped by row, so that neither a thread's own loads nor ldmatrix's meet in a bank.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from plugins.sage_attention import ptx_kernel as ptx
from plugins.sage_attention.mma_output_kernel import (
    averaged,
    bf16_product,
    copy_rows,
    operand_lines,
    query_words,
    store_output,
)
from plugins.sage_attention.primitives_kernel import SCORE_SCALE as _SCORE_SCALE

SCORE_SCALE = gl.constexpr(_SCORE_SCALE.value)
KEYS = gl.constexpr(32)  # of a step
TILE = gl.constexpr(32 * 256)  # bytes of a step's k, or v
STAGES = gl.constexpr(3)
LARGEST = gl.constexpr(2.0**96)
SMALLEST = gl.constexpr(2.0**-96)


@gluon.jit
def _probabilities(s, AT: gl.constexpr, level):
    """2^(s·SCORE_SCALE + level) of two neighbouring scores: a word of bf16, and both."""
    return gl.inline_asm_elementwise(
        "{ .reg .f32 a, b; fma.rn.f32 a, $3, $6, $5; fma.rn.f32 b, $4, $6, $5;"
        " ex2.approx.ftz.f32 $1, a; ex2.approx.ftz.f32 $2, b; cvt.rn.bf16x2.f32 $0, $2, $1; }",
        "=&r,=&f,=&f,f,f,f,f",
        [s[AT], s[AT + 1], level, SCORE_SCALE],
        dtype=(gl.int32, gl.float32, gl.float32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _copy_step(base, k, v, step, S, D: gl.constexpr, E: gl.constexpr):
    """Start the copies of a step's k and v, and end a group of copies; ``k``, ``v``: of the head."""
    at = base + step % STAGES * (2 * TILE)
    copy_rows(at, k, step * KEYS, S, 2 * D, KEYS, 1)
    copy_rows(at + TILE, v, step * KEYS, S, 2 * E, KEYS, 7)
    ptx.commit()


@gluon.jit
def _scores(q, even, odd, PART: gl.constexpr):
    """Scores of 16 keys as 16 registers (8 keys each: two 16 rows of 2 × 2); ``even``, ``odd``: k's
    operand_lines.
    """
    s = ()
    for _ in gl.static_range(16):
        s += (gl.to_tensor(0.0),)
    for group in gl.static_range(4):
        line = even if group % 2 == 0 else odd
        keys = ptx.load_four(line, PART * 4096 + group // 2 * 128)
        keys += ptx.load_four(line, PART * 4096 + group // 2 * 128 + 2048)
        for w in gl.static_range(2):
            new = ()
            for j in gl.static_range(2):
                for half in gl.static_range(2):
                    new += bf16_product(q, group * 16 + half * 8 + w * 2, keys, j * 4 + w * 2, s, j * 8 + half * 4)
            s = new
    return s


@gluon.jit
def _softmax(s, level, total):
    """16 probabilities as eight words, each 16 rows' first operand of four, and total plus them."""
    words, new = (), ()
    for half in gl.static_range(2):
        low, low_a, low_b = _probabilities(s, half * 4, level[half * 2])
        high, high_a, high_b = _probabilities(s, half * 4 + 8, level[half * 2])
        low2, low2_a, low2_b = _probabilities(s, half * 4 + 2, level[half * 2 + 1])
        high2, high2_a, high2_b = _probabilities(s, half * 4 + 10, level[half * 2 + 1])
        words += (low, high, gl.to_tensor(0), gl.to_tensor(0), low2, high2, gl.to_tensor(0), gl.to_tensor(0))
        new += (total[half * 2] + ((low_a + low_b) + (high_a + high_b)),)
        new += (total[half * 2 + 1] + ((low2_a + low2_b) + (high2_a + high2_b)),)
    return words, new


@gluon.jit
def _accumulated(acc, p, values, PART: gl.constexpr):
    """acc plus p·v of 16 keys; v's 16 columns n are read behind values[n % 4]."""
    new = ()
    for n in gl.static_range(8):
        w = ptx.load_transposed(values[n % 4], PART * 4096 + n // 4 * 128)
        for tile in gl.static_range(2):
            for half in gl.static_range(2):
                new += bf16_product(p, half * 8, w, tile * 2, acc, n * 16 + tile * 8 + half * 4)
    return new


@gluon.jit
def _without(s, left):
    """Scores of 16 keys, but negative infinity from key number ``left`` on."""
    left -= ptx.thread_number_here() % 4 * 2
    new = ()
    for i in gl.static_range(16):
        new += (ptx.or_lowest(s[i].to(gl.int32, bitcast=True), i // 8 * 8 + i % 2, left).to(gl.float32, bitcast=True),)
    return new


@gluon.jit
def _levels(q, base, even, odd, k, S, D: gl.constexpr):
    """Minus the largest scaled score of each of the thread's rows, in a pass over all keys."""
    tops = ()
    for _ in gl.static_range(4):
        tops += (gl.to_tensor(float("-inf")),)
    for first in range(0, S, KEYS):
        ptx.meet()
        copy_rows(base, k, first, S, 2 * D, KEYS, 1)
        ptx.commit()
        ptx.arrived(0)
        for part in gl.static_range(2):
            s = _without(_scores(q, even, odd, part), S - first - part * 16)
            new = ()
            for row in gl.static_range(4):
                top = gl.maximum(gl.maximum(s[row * 2], s[row * 2 + 1]), gl.maximum(s[8 + row * 2], s[9 + row * 2]))
                new += (gl.maximum(tops[row], top),)
            tops = new
    ptx.meet()
    levels = ()
    for row in gl.static_range(4):
        top = gl.maximum(tops[row], ptx.from_lane(tops[row], 1))
        levels += (-SCORE_SCALE * gl.maximum(top, ptx.from_lane(top, 2)),)
    return levels


@gluon.jit
def _step(q, even, odd, value_at, step, acc, total, level, left, SHORT: gl.constexpr):
    """acc and total plus those of a step's keys, if SHORT of the first ``left`` of them."""
    slot = step % STAGES * (2 * TILE)
    even, odd = even + slot, odd + slot
    value_at += slot  # added first: four places behind it would be held through the loop
    values = ()
    for n in gl.static_range(4):
        values += (value_at ^ (n * 32),)
    for part in gl.static_range(2):
        s = _scores(q, even, odd, part)
        if SHORT:
            s = _without(s, left - part * 16)
        p, total = _softmax(s, level, total)
        acc = _accumulated(acc, p, values, part)
    return acc, total


@gluon.jit
def _attended(q, base, even, odd, value_at, k, v, level, S, D: gl.constexpr, E: gl.constexpr):
    """The accumulator's 128 registers and the thread's share of its rows' sums, over all keys."""
    acc, total = (), ()
    for _ in gl.static_range(128):
        acc += (gl.to_tensor(0.0),)
    for _ in gl.static_range(4):
        total += (gl.to_tensor(0.0),)
    _copy_step(base, k, v, 0, S, D, E)
    _copy_step(base, k, v, 1, S, D, E)
    for step in range(S // KEYS):
        ptx.arrived(1)
        _copy_step(base, k, v, step + 2, S, D, E)
        acc, total = _step(q, even, odd, value_at, step, acc, total, level, KEYS, False)
    if S % KEYS != 0:
        ptx.arrived(1)
        acc, total = _step(q, even, odd, value_at, S // KEYS, acc, total, level, S % KEYS, True)
    ptx.arrived(0)
    return acc, total


@gluon.jit
def _out_of_range(total):
    """1 if one of the sums of the thread's rows is larger or smaller than what is precise, else 0."""
    lowest, highest = gl.to_tensor(1.0), gl.to_tensor(1.0)
    for row in gl.static_range(4):
        sums = total[row] + ptx.from_lane(total[row], 1)
        sums += ptx.from_lane(sums, 2)
        lowest, highest = gl.minimum(lowest, sums), gl.maximum(highest, sums)
    return ((highest > LARGEST) | (lowest < SMALLEST)).to(gl.int32)


@gluon.jit
def flash_attention_mma_bf16(
    q,
    k,
    v,
    o,
    o_scale,
    L,
    S,
    D: gl.constexpr,
    E: gl.constexpr,
    QUANTIZE: gl.constexpr,
):
    """flash_kernel.flash_attention for PV = "bf16", dense. Grid (⌈L/128⌉, H)."""
    memory, base = ptx.shared_space(STAGES * 2 * TILE)
    q_block, head = gl.program_id(0), gl.program_id(1)
    lane = ptx.thread_number() % 32
    queries = query_words(q, q_block * 128 + ptx.thread_number() // 32 * 32, head, L, D)
    k += head * 128
    v += E - D + head * 128
    even, odd = operand_lines(base)
    # Matrices of ldmatrix: both 8 keys of 8 columns, then of the next 8.
    value_at = base + TILE + lane % 16 * 256 + (lane // 16 ^ lane % 8) * 16
    zero, level, total, acc = gl.to_tensor(0.0), (), (), ()
    for _ in gl.static_range(4):
        level += (zero,)
        total += (zero,)
    for _ in gl.static_range(128):
        acc += (zero,)
    runs = 2
    while runs > 0:
        acc, total = _attended(queries, base, even, odd, value_at, k, v, level, S, D, E)
        runs -= 1
        if ptx.any_of_program(_out_of_range(total)) == 0:
            runs = 0
        if runs > 0:
            level = _levels(queries, base, even, odd, k, S, D)
    q_block, head = ptx.program_numbers()
    store_output(o, o_scale, averaged(acc, total), base, q_block, head, L, D, QUANTIZE)
    memory._keep_alive()
