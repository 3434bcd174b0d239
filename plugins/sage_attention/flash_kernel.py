"""Flash attention in Triton, dense or over chosen key blocks, for every SM; q is quantized on the way in.

A step takes ``BLOCKS`` key blocks: two share one rescaling of the accumulator and one reduction over a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugins.sage_attention.primitives_kernel import (
    BLOCK_K,
    BLOCK_Q,
    FP8_SHIFT,
    HEAD,
    LOG2E,
    SCORE_SCALE,
    int64,
    load_rows,
    round_to_int8,
    scalar,
)
from plugins.triton_math import quantize_tile

NEVER = tl.constexpr(-(1 << 21))  # below any int32 score (128 products of ±127) and exact in fp32


@triton.jit
def load_tile(x, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Contiguous tile number ``tile`` of x."""
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(x + int64(tile) * (ROWS * COLUMNS) + offsets)


@triton.jit
def load_full(x, block, head, BLOCK: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr):
    """load_rows for a block that lies inside x: no mask."""
    pointers = x + int64(block) * BLOCK * STRIDE + head * HEAD + OFFSET
    return tl.load(pointers + tl.arange(0, BLOCK)[:, None] * STRIDE + tl.arange(0, HEAD)[None, :])


@triton.jit
def score_block(
    q,
    k,
    k_scale,
    q_scale,
    head,
    block,
    nk,
    S,
    D: tl.constexpr,
    PV: tl.constexpr,
    SHORT: tl.constexpr,
):
    """(q·kᵀ before scaling, its scale for exp2) of one key block: int32 or fp32 [128,64]; keys past S are lowest."""
    real = (block * BLOCK_K + tl.arange(0, BLOCK_K) < S)[None, :]
    if PV == "bf16":
        if SHORT:  # noqa: SIM108 (Triton compiles one branch)
            keys = load_rows(k, block, head, S, BLOCK_K, D, 0)
        else:
            keys = load_full(k, block, head, BLOCK_K, D, 0)
        s = tl.dot(q, tl.trans(keys))
        scale = q_scale
        if SHORT:
            s = tl.where(real, s, float("-inf"))
    else:
        keys = load_tile(k, head * nk + block, BLOCK_K, HEAD)
        scale = q_scale * tl.load(k_scale + head * nk + block)
        s = tl.dot(q, tl.trans(keys), out_dtype=tl.int32)
        if SHORT:
            s = tl.where(real, s, NEVER)
    return s, scale


@triton.jit
def probabilities(s, scale, shift, PV: tl.constexpr, SHORT: tl.constexpr):
    """exp2(s·scale − shift), fp32 [128,64]; 0 where s is lowest."""
    p = tl.exp2(s.to(tl.float32) * scale - shift[:, None])
    if SHORT and PV != "bf16":
        p = tl.where(s == NEVER, 0.0, p)
    return p


@triton.jit
def fragments(p, PV: tl.constexpr):
    """p [128,64] in the dtype of P·V; fp8 in keys_kernel.fragment_order, in which no register changes its thread."""
    if PV == "fp8":
        groups = tl.reshape(p.to(tl.float8e4nv), [BLOCK_Q, BLOCK_K // 16, 2, 4, 2])
        result = tl.reshape(tl.permute(groups, (0, 1, 3, 2, 4)), [BLOCK_Q, BLOCK_K])
    else:
        result = p.to(tl.bfloat16)
    return result


@triton.jit
def value_block(
    p,
    acc,
    v,
    head,
    block,
    nk,
    S,
    D: tl.constexpr,
    E: tl.constexpr,
    PV: tl.constexpr,
    SHORT: tl.constexpr,
):
    """acc + p·v of one key block, fp32 [128,128]; without acc, p·v."""
    # No early returns: Triton refuses them in an inlined function.
    if PV == "fp8":
        values = tl.trans(load_tile(v, head * nk + block, HEAD, BLOCK_K))
        result = tl.dot(fragments(p, PV), values, acc)
    else:
        if SHORT:
            values = load_rows(v, block, head, S, BLOCK_K, E, E - D)
        else:
            values = load_full(v, block, head, BLOCK_K, E, E - D)
        result = tl.dot(fragments(p, PV), values, acc)
    return result


@triton.jit
def row_maximum(s, scale, PV: tl.constexpr):
    """Largest scaled score of each row; the maximum is taken on the integers."""
    return tl.max(s, 1) * scale if PV == "bf16" else tl.max(s, 1).to(tl.float32) * scale


@triton.jit
def attend(
    q,
    k,
    v,
    k_scale,
    q_scale,
    acc,
    total,
    best,
    head,
    block,
    second,
    nk,
    S,
    BLOCKS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    PV: tl.constexpr,
    SHORT: tl.constexpr,
):
    """One step of online softmax (FlashAttention-2, algorithm 1) over one or two blocks; ``best`` is in exp2 units."""
    s, scale = score_block(q, k, k_scale, q_scale, head, block, nk, S, D, PV, SHORT)
    new_best = tl.maximum(best, row_maximum(s, scale, PV))
    if BLOCKS == 2:
        s2, scale2 = score_block(q, k, k_scale, q_scale, head, second, nk, S, D, PV, SHORT)
        new_best = tl.maximum(new_best, row_maximum(s2, scale2, PV))
    shift = new_best - FP8_SHIFT if PV == "fp8" else new_best
    p = probabilities(s, scale, shift, PV, SHORT)
    alpha = tl.exp2(best - new_best)
    sums = p
    if BLOCKS == 2:
        p2 = probabilities(s2, scale2, shift, PV, SHORT)
        sums = p + p2
    total = total * alpha + tl.sum(sums, 1)
    if PV == "fp8":
        # Tensor cores add FP8 products in 22 bits or fewer (sm_89, sm_90): sum steps outside them, in true fp32.
        product = value_block(p, None, v, head, block, nk, S, D, E, PV, SHORT)
        if BLOCKS == 2:
            product = value_block(p2, product, v, head, second, nk, S, D, E, PV, SHORT)
        acc = tl.fma(acc, tl.broadcast_to(alpha[:, None], acc.shape), product)
    else:
        acc = value_block(p, acc * alpha[:, None], v, head, block, nk, S, D, E, PV, SHORT)
        if BLOCKS == 2:
            acc = value_block(p2, acc, v, head, second, nk, S, D, E, PV, SHORT)
    return acc, total, new_best


@triton.jit
def add_linear_branch(acc, q, kv_proj, z, bias, q_block, head, L, D: tl.constexpr):
    """acc + φ(q)·KV_proj / (1e-5 + φ(q)·z) + bias of one q block, fp32 [128,128].

    With e = exp(q − max q): φ·KV / (1e-5 + φ·z) = e·KV / (1e-5·Σe + e·z). Three passes over 32 channels at a time, and
    products added onto acc: with the whole tile or a second accumulator at hand, registers spill.
    """
    DEPTH: tl.constexpr = 32
    rows = tl.arange(0, BLOCK_Q)
    real = (q_block * BLOCK_Q + rows < L)[:, None]
    pointers = q + int64(q_block) * BLOCK_Q * D + head * HEAD + rows[:, None] * D + tl.arange(0, DEPTH)[None, :]
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    for start in tl.range(0, HEAD, DEPTH, num_stages=1):
        x = tl.load(pointers + start, mask=real, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.max(x, 1))
    denominator = tl.zeros([BLOCK_Q], tl.float32)
    for start in tl.range(0, HEAD, DEPTH, num_stages=1):
        x = tl.load(pointers + start, mask=real, other=0.0).to(tl.float32)
        zc = tl.load(z + head * HEAD + start + tl.arange(0, DEPTH))
        denominator += tl.sum(tl.exp2((x - top[:, None]) * LOG2E) * (1e-5 + zc)[None, :], 1)
    inverse = 1.0 / denominator
    c = tl.arange(0, HEAD)
    acc += tl.load(bias + c)[None, :]
    for start in tl.range(0, HEAD, DEPTH, num_stages=1):
        x = tl.load(pointers + start, mask=real, other=0.0).to(tl.float32)
        phi = tl.exp2((x - top[:, None]) * LOG2E) * inverse[:, None]
        matrix = tl.load(kv_proj + (head * HEAD + start + tl.arange(0, DEPTH)[:, None]) * HEAD + c[None, :])
        acc = tl.dot(phi.to(tl.bfloat16), matrix, acc)
    return acc


@triton.jit
def store_output(o, o_scale, acc, q_block, head, L, D: tl.constexpr, QUANTIZE: tl.constexpr):
    """The rows of acc [128,128] that are of the L, to o: bf16, or with QUANTIZE int8 and the tile's scale."""
    rows = tl.arange(0, BLOCK_Q)
    real = (q_block * BLOCK_Q + rows < L)[:, None]
    o += (q_block * BLOCK_Q).to(tl.int64) * D + head * HEAD
    offsets = rows[:, None] * D + tl.arange(0, HEAD)[None, :]
    if QUANTIZE:
        y, scale = quantize_tile(tl.where(real, acc, 0.0))
        tl.store(o + offsets, y, mask=real)
        tl.store(o_scale + q_block * (D // HEAD) + head, scale)
    else:
        tl.store(o + offsets, acc.to(tl.bfloat16), mask=real)


@triton.jit
def flash_attention(
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
    D: tl.constexpr,
    E: tl.constexpr,
    PV: tl.constexpr,
    BLOCKS: tl.constexpr,
    SPARSE: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    """Attention of one block of 128 queries of one head. Grid (⌈L/128⌉, H): a head's programs run together, its k and
    v stay in L2.

    q bf16 [L,D]; o bf16 [L,D], or with QUANTIZE int8 [L,D] and o_scale fp32 [⌈L/128⌉,H]: a tile is one quantization
    block. PV = "bf16": k, v are the inputs [S,D], [S,E]. Else k int8, v fp8, in keys_kernel's layouts, k_scale fp32
    [H,nk], v_scale fp32 [H,128]; q is quantized here with one scale a block. SPARSE: only the ``kept`` key blocks in
    lut int32 [H,nq,kept], ascending, and the linear branch is added.
    """
    q_block, head = tl.program_id(0), tl.program_id(1)
    nk = tl.cdiv(S, BLOCK_K)
    queries = load_rows(q, q_block, head, L, BLOCK_Q, D, 0)
    q_scale = SCORE_SCALE
    if PV != "bf16":
        amax = tl.maximum(tl.max(tl.abs(queries.to(tl.float32))), 1e-8)
        queries = round_to_int8(queries.to(tl.float32) * (127.0 / amax))
        q_scale = amax * (SCORE_SCALE / 127.0)
    last = nk - 1
    count = nk
    if SPARSE:
        count = kept
        lut += (head * tl.num_programs(0) + q_block).to(tl.int64) * kept
        last = tl.load(lut + kept - 1)
    full = count - ((last == nk - 1) & (S % BLOCK_K != 0)).to(tl.int32)
    steps = full // BLOCKS
    acc = tl.zeros([BLOCK_Q, HEAD], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    best = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    for i in range(0, steps):
        block = tl.load(lut + i * BLOCKS) if SPARSE else scalar(i * BLOCKS)
        second = tl.load(lut + i * BLOCKS + BLOCKS - 1) if SPARSE else scalar(i * BLOCKS + BLOCKS - 1)
        acc, total, best = attend(
            queries,
            k,
            v,
            k_scale,
            q_scale,
            acc,
            total,
            best,
            head,
            block,
            second,
            nk,
            S,
            BLOCKS,
            D,
            E,
            PV,
            False,
        )
    # What is left, an odd block and the short last one: a second loop keeps masks out of the first.
    for i in tl.range(steps * BLOCKS, count, num_stages=1):
        block = tl.load(lut + i) if SPARSE else scalar(i)
        acc, total, best = attend(
            queries,
            k,
            v,
            k_scale,
            q_scale,
            acc,
            total,
            best,
            head,
            block,
            block,
            nk,
            S,
            1,
            D,
            E,
            PV,
            True,
        )
    acc = acc * (1.0 / total)[:, None]
    if PV != "bf16":
        acc = acc * tl.load(v_scale + head * HEAD + tl.arange(0, HEAD))[None, :]
    if SPARSE:
        acc = add_linear_branch(acc, q, kv_proj, z, bias, q_block, head, L, D)
    store_output(o, o_scale, acc, q_block, head, L, D, QUANTIZE)
