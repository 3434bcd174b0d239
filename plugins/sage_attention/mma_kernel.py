"""INT8 flash attention for the parts with mma.sync and cp.async (sm_80, 86, 89, 120), in Gluon and PTX.

Four warps hold 32 queries each: half of shared memory's traffic of 16, which alone would take longer than the products.
Everything is written for one thread (ptx_kernel.py), for three reasons:

- Order. A warp issues in order, so what is to overlap must lie side by side: the exponentials of 32 keys stand among
  the products q·kᵀ of the next 32, and sums leave FP16 among the next products. Scores of a whole block would not leave
  registers enough beside the 128 of the accumulator.
- A reference that lags. Probabilities are 2^(score − reference + FLOOR), and the reference is an earlier maximum as
  long as no score of the warp exceeds it by more than SLACK: a vote decides, and only then are maxima exchanged and
  the accumulator rescaled. The bound on probabilities, by which FP16 sums cannot overflow, is checked with the very
  multiply-add that makes the exponent.
- Fragments. Tiles of k and v come in the order in which threads hold operands (keys_kernel): 16 bytes a thread are two
  steps of a product, without bank conflicts, and one address register serves them all.

Scores start at MAGIC's bits: the sum, read as fp32, is MAGIC + q·k, and scaling is one multiply-add without conversion.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from plugins.gluon_ptx import load16
from plugins.sage_attention import ptx_kernel as ptx
from plugins.sage_attention.mma_output_kernel import add_linear_branch, averaged, scaled_values, store_output
from plugins.sage_attention.mma_steps_kernel import probabilities, products, rescaled, scores, scores_beside
from plugins.sage_attention.primitives_kernel import SCORE_SCALE as _SCORE_SCALE
from plugins.triton_math import MAGIC

SCORE_SCALE = gl.constexpr(_SCORE_SCALE.value)
Q_BYTES = gl.constexpr(128 * 128)
K_BYTES = gl.constexpr(64 * 128)
CHUNK_BYTES = gl.constexpr(K_BYTES.value // 4)  # of 32 keys in one half of the channels


@gluon.jit
def _tops(s):
    """The largest of a thread's scores of each of its four rows, fp32 with MAGIC."""
    tops = ()
    for row in gl.static_range(4):
        top = gl.maximum(s[row * 2], s[row * 2 + 1])
        for j in gl.static_range(1, 4):
            top = gl.maximum(top, gl.maximum(s[j * 8 + row * 2], s[j * 8 + row * 2 + 1]))
        tops += (top.to(gl.float32, bitcast=True),)
    return tops


@gluon.jit
def _shifts(best, scale, FLOOR: gl.constexpr):
    """What is added to a score, MAGIC in it, times scale: each row's exponent is FLOOR at its reference."""
    shift = ()
    for row in gl.static_range(4):
        shift += (FLOOR - best[row] - scale * MAGIC,)
    return shift


@gluon.jit
def _referred(s, scale, best, total, acc, p, PV: gl.constexpr, FLOOR: gl.constexpr, SLACK: gl.constexpr):
    """The shifts for the scores s, after moving the references to the maxima if one of the warp's is exceeded: then
    total, acc and the probabilities p, which are not in acc yet, are rescaled. Returns shift, best, total, acc, p.
    """
    tops = _tops(s)
    shift = _shifts(best, scale, FLOOR)
    worst = ptx.multiply_add(tops[0], scale, shift[0])
    for row in gl.static_range(1, 4):
        worst = gl.maximum(worst, ptx.multiply_add(tops[row], scale, shift[row]))
    if ptx.any_of_warp((worst > FLOOR + SLACK).to(gl.int32)) != 0:
        alpha, new_best, new_total, new_acc, new_p = (), (), (), (), ()
        for row in gl.static_range(4):
            top = gl.maximum(tops[row], ptx.from_lane(tops[row], 1))
            top = gl.maximum(top, ptx.from_lane(top, 2))
            new_best += (gl.maximum(best[row], (top - MAGIC) * scale),)
            alpha += (ptx.exp2(best[row] - new_best[row]),)
            new_total += (total[row] * alpha[row],)
        for i in gl.static_range(128):
            new_acc += (acc[i] * alpha[i // 2 % 4],)
        for i in gl.static_range(len(p)):
            new_p += (rescaled(p[i], alpha[i // (len(p) // 2) * 2 + i % 2], PV),)
        shift = _shifts(new_best, scale, FLOOR)
        lower = ()
        for row in gl.static_range(4):
            # Where a score's unit is worth more than SLACK, rounding could pass the bound.
            over = gl.maximum(ptx.multiply_add(tops[row], scale, shift[row]) - FLOOR, 0.0)
            lower += (shift[row] - 2.0 * over,)
        shift, best, total, acc, p = lower, new_best, new_total, new_acc, new_p
    return shift, best, total, acc, p


@gluon.jit
def _without(s, left):
    """Scores of a chunk of 32 keys, but negative infinity from key number ``left`` on."""
    new = ()
    left -= ptx.thread_number_here() % 4 * 2
    for i in gl.static_range(32):
        new += (ptx.or_lowest(s[i], i // 8 * 8 + i % 2, left),)
    return new


@gluon.jit
def _quantized(low, high, scale):
    """Four bf16 numbers of two words times scale, rounded: a word of int8."""
    return gl.inline_asm_elementwise(
        "{ .reg .f32 f; .reg .b32 a, b, c, d;"
        " shl.b32 a, $1, 16; mov.b32 f, a; fma.rn.f32 f, f, $3, 0f4B400000; mov.b32 a, f;"
        " and.b32 b, $1, 0xffff0000; mov.b32 f, b; fma.rn.f32 f, f, $3, 0f4B400000; mov.b32 b, f;"
        " shl.b32 c, $2, 16; mov.b32 f, c; fma.rn.f32 f, f, $3, 0f4B400000; mov.b32 c, f;"
        " and.b32 d, $2, 0xffff0000; mov.b32 f, d; fma.rn.f32 f, f, $3, 0f4B400000; mov.b32 d, f;"
        " prmt.b32 a, a, b, 0x0040; prmt.b32 c, c, d, 0x0040; prmt.b32 $0, a, c, 0x5410; }",
        "=r,r,r,f",
        [low, high, scale],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _store_operand(address, x, AT: gl.constexpr, scale):
    """16 bytes: of the words x from AT on, two groups of four channels of rows r and r + 8, eight words further."""
    a, b = _quantized(x[AT], x[AT + 1], scale), _quantized(x[AT + 8], x[AT + 9], scale)
    c, d = _quantized(x[AT + 2], x[AT + 3], scale), _quantized(x[AT + 10], x[AT + 11], scale)
    ptx.store_four(address, a, b, c, d)


@gluon.jit
def _store_queries(q, to, q_block, head, L, D: gl.constexpr):
    """Quantize the block's 128 queries to shared memory, in the order of the first operand; returns their scale.

    A thread has 16 channels of each half of its four rows; 16 bytes are rows r and r + 8 of two groups of channels.
    """
    thread = ptx.thread_number()
    lane, warp = thread % 32, thread // 32
    x = ()
    for i in gl.static_range(8):  # half of the channels, 16 rows, 8 rows
        row = q_block * 128 + warp * 32 + i % 4 * 8 + lane // 4
        pointer = (q + (row.to(gl.int64) * D + (head * 128 + i // 4 * 64 + lane % 4 * 16))).to(gl.int64, bitcast=True)
        real = (row < L).to(gl.int32)
        x += load16(pointer, real)
        x += load16(pointer + 16, real)
    amax = gl.to_tensor(1e-8)
    for i in gl.static_range(64):
        amax = gl.maximum(amax, gl.abs((x[i] << 16).to(gl.float32, bitcast=True)))
        amax = gl.maximum(amax, gl.abs((x[i] & -65536).to(gl.float32, bitcast=True)))
    for i in gl.static_range(5):
        amax = gl.maximum(amax, ptx.from_lane(amax, 1 << i))
    ptx.store_four(to + thread * 16, amax.to(gl.int32, bitcast=True), 0, 0, 0)
    ptx.meet()
    for i in gl.static_range(4):
        amax = gl.maximum(amax, ptx.load_four(to, i * 512)[0].to(gl.float32, bitcast=True))
    ptx.meet()
    for i in gl.static_range(8):  # half of the channels, 16 rows, step
        address = to + (i // 4 * 8192 + i // 2 % 2 * 1024 + i % 2 * 512) + (warp * 2048 + lane * 16)
        _store_operand(address, x, i // 4 * 32 + i // 2 % 2 * 16 + i % 2 * 4, 127.0 / amax)
    return amax * (SCORE_SCALE / 127.0)


@gluon.jit
def _block(lut, row, i, count, SPARSE: gl.constexpr):
    """Number of a q block's i-th key block, the last one's past the end; its row of lut starts at ``row``."""
    i = gl.minimum(i, count - 1)
    return gl.load(lut + row + i) if SPARSE else i


@gluon.jit
def _copy_tile(address, x, tile, BYTES: gl.constexpr):
    """Start the copy of a tile of x to shared memory, and end a group of copies."""
    ptx.copy_bytes(address, x.to(gl.int64, bitcast=True) + tile.to(gl.int64) * BYTES, BYTES)
    ptx.commit()


@gluon.jit
def _cut(s, i, own, count, S, CHUNK: gl.constexpr):
    """Scores of chunk CHUNK of the i-th block, but negative infinity past the last key."""
    if i == count - 1:  # blocks are in order: no other is short
        s = _without(s, S - ptx.load_four(own)[3] * 64 - CHUNK * 32)
    return s


@gluon.jit
def _attended(
    k,
    v,
    k_scale,
    lut,
    count,
    S,
    base,
    PV: gl.constexpr,
    FLOOR: gl.constexpr,
    SLACK: gl.constexpr,
    V_SLOTS: gl.constexpr,
    SPARSE: gl.constexpr,
):
    """The accumulator's 128 registers (8 columns each: two 16 rows of 2 × 2) and the thread's share of its rows' sums,
    over the key blocks. At ``own`` lie the queries' scale, where their row of lut starts, the numbers of the head's
    first tile and of the last block: as registers they would be too many.

    Of k's tiles two are in shared memory, of v's V_SLOTS. In the middle of a block, when all warps are done with its
    keys, the next but one's are asked for; v's next tile then, or with one slot when the block begins.
    """
    V_BYTES: gl.constexpr = K_BYTES if PV == "fp8" else 2 * K_BYTES
    VALUES: gl.constexpr = Q_BYTES + 2 * K_BYTES
    line = base + ptx.thread_number() % 32 * 16
    queries, keys, values = line + ptx.thread_number() // 32 * 2048, line + Q_BYTES, line + VALUES
    own = base + (VALUES + V_SLOTS * V_BYTES)
    words = ptx.load_four(own)
    block = words[2] + _block(lut, words[1], 0, count, SPARSE)
    _copy_tile(base + Q_BYTES, k, block, K_BYTES)
    if V_SLOTS == 2:
        _copy_tile(base + VALUES, v, block, V_BYTES)
    acc, total, best = (), (), ()
    for _ in gl.static_range(128):
        acc += (gl.to_tensor(0.0),)
    for _ in gl.static_range(4):
        total += (gl.to_tensor(0.0),)
        best += (gl.to_tensor(float("-inf")),)
    for i in range(count):
        slot = i % 2
        ptx.arrived(0)
        # Two loads whose values are wanted behind the first products.
        words = ptx.load_four(own)
        if not SPARSE:
            block = words[2] + i  # rather than held through the loop
        next_block = words[2] + _block(lut, words[1], i + 1, count, SPARSE)
        scale = gl.load(k_scale + block) * words[0].to(gl.float32, bitcast=True)
        if V_SLOTS == 1:
            _copy_tile(base + VALUES, v, block, V_BYTES)
        at = keys + slot * K_BYTES
        s = scores(queries, at)
        _copy_tile(base + Q_BYTES + (1 - slot) * K_BYTES, k, next_block, K_BYTES)
        if V_SLOTS == 2:
            _copy_tile(base + VALUES + (1 - slot) * V_BYTES, v, next_block, V_BYTES)
        s = _cut(s, i, own, count, S, 0)
        shift, best, total, acc, _none = _referred(s, scale, best, total, acc, (), PV, FLOOR, SLACK)
        s, p, total = scores_beside(queries, at + CHUNK_BYTES, s, scale, shift, total, PV)
        s = _cut(s, i, own, count, S, 1)
        shift, best, total, acc, p = _referred(s, scale, best, total, acc, p, PV, FLOOR, SLACK)
        p2, total = probabilities(s, scale, shift, total, PV)
        if V_SLOTS == 1:
            ptx.arrived(1)
        acc = products(acc, p, p2, values + (slot * V_BYTES if V_SLOTS == 2 else 0), PV)
        block = next_block
    ptx.arrived(0)
    return acc, total


@gluon.jit
def flash_attention_mma(
    q,
    k,
    v,
    o,
    o_scale,
    k_scale,
    v_scale,
    lut,
    kv_proj,
    z,
    bias,
    L,
    S,
    kept,
    D: gl.constexpr,
    PV: gl.constexpr,
    FLOOR: gl.constexpr,
    SLACK: gl.constexpr,
    V_SLOTS: gl.constexpr,
    SPARSE: gl.constexpr,
    QUANTIZE: gl.constexpr,
):
    """flash_kernel.flash_attention for int8 k; tiles of k, v and kv_proj are in fragment order; without SPARSE ``kept``
    is the number of all key blocks. Grid (⌈L/128⌉, H).
    """
    V_BYTES: gl.constexpr = K_BYTES if PV == "fp8" else 2 * K_BYTES
    END: gl.constexpr = Q_BYTES + 2 * K_BYTES + V_SLOTS * V_BYTES
    memory, base = ptx.shared_space(END + 16)
    q_block, head = gl.program_id(0), gl.program_id(1)
    scale = _store_queries(q, base, q_block, head, L, D).to(gl.int32, bitcast=True)
    row = (head * gl.num_programs(0) + q_block) * kept
    last = _block(lut, row, kept, kept, SPARSE)
    ptx.store_four(base + END, scale, row, head * gl.cdiv(S, 64), last)
    acc, total = _attended(
        k,
        v,
        k_scale,
        lut,
        kept,
        S,
        base,
        PV,
        FLOOR,
        SLACK,
        V_SLOTS,
        SPARSE,
    )
    q_block, head = ptx.program_numbers()
    acc = scaled_values(averaged(acc, total), v_scale, head)
    if SPARSE:
        acc = add_linear_branch(acc, q, kv_proj, z, bias, base + Q_BYTES, q_block, head, L, D)
    store_output(o, o_scale, acc, base, q_block, head, L, D, QUANTIZE)
    memory._keep_alive()
