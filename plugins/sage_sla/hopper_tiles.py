"""What sage_sla_hopper's consumers do with one tile: scores, softmax, products with v, the linear branch, the output.

A group is one warpgroup with 64 of a tile's 128 queries; GROUP is its number, 0 or 1.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from plugins.sage_attention.primitives_kernel import FP8_SHIFT as _FP8_SHIFT
from plugins.sage_attention.primitives_kernel import LOG2E as _LOG2E
from plugins.triton_math import MAGIC

LOG2E = gl.constexpr(_LOG2E.value)
FP8_SHIFT = gl.constexpr(_FP8_SHIFT.value)
NEVER = gl.constexpr(-(1 << 21))  # below any int32 score (128 products of ±127)


@gluon.jit
def _fragments(p, O_LAYOUT: gl.constexpr):
    """p [64,64] as the FP8 operand of p·v in keys_kernel.fragment_order: no register changes its thread."""
    groups = p.to(gl.float8e4nv).reshape([64, 4, 2, 4, 2]).permute((0, 1, 3, 2, 4)).reshape([64, 64])
    return gl.convert_layout(groups, gl.DotOperandLayout(0, O_LAYOUT, 4), assert_trivial=True)


@gluon.jit
def _scale(scale_ring, stage, index: gl.constexpr):
    """One of a stage's two k scales. Not from global memory: its latency would stall the group in every step."""
    value = scale_ring.index(stage).slice(index, 1, 0).load(gl.BlockedLayout([1], [32], [4], [0]))
    return gl.sum(value, 0)


@gluon.jit
def enter_turn(turn, GROUP: gl.constexpr, count):
    """Wait for this group's turn at the tensor cores, number ``count``; group 0 has the first."""
    mbarrier.wait(turn.index(GROUP), (count & 1) ^ (1 - GROUP))


@gluon.jit
def leave_turn(turn, GROUP: gl.constexpr):
    """Give the turn to the other group."""
    mbarrier.arrive(turn.index(1 - GROUP), count=1)


@gluon.jit
def scores(q, k_ring, full, step, STAGES: gl.constexpr, LAYOUT: gl.constexpr):
    """int32 q·kᵀ [64,64] of both blocks of a step, once they are there."""
    stage = step % STAGES
    mbarrier.wait(full.index(stage), (step // STAGES) & 1)
    zeros = gl.zeros([64, 64], gl.int32, LAYOUT)
    s = warpgroup_mma(q, k_ring.index(2 * stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
    s2 = warpgroup_mma(q, k_ring.index(2 * stage + 1).permute((1, 0)), zeros, use_acc=False, is_async=True)
    return warpgroup_mma_wait(0, deps=[s, s2])


@gluon.jit
def softmax_step(
    s,
    s2,
    scale_ring,
    stage,
    q_scale,
    total,
    best,
    limit,
    limit2,
    S_LAYOUT: gl.constexpr,
    O_LAYOUT: gl.constexpr,
    MASKED: gl.constexpr,
):
    """One step of online softmax: FP8 operands of p·v, then alpha, total, best; MASKED: ``limit`` keys of a block."""
    scale, scale2 = q_scale * _scale(scale_ring, stage, 0), q_scale * _scale(scale_ring, stage, 1)
    keys = gl.arange(0, 64, gl.SliceLayout(0, S_LAYOUT))
    if MASKED:
        s = gl.where((keys < limit)[None, :], s, NEVER)
        s2 = gl.where((keys < limit2)[None, :], s2, NEVER)
    top = gl.maximum(gl.max(s, 1).to(gl.float32) * scale, gl.max(s2, 1).to(gl.float32) * scale2)
    new_best = gl.maximum(best, top)
    alpha = gl.exp2(best - new_best)
    shift = (new_best - FP8_SHIFT)[:, None]
    p = gl.exp2(s.to(gl.float32) * scale - shift)
    p2 = gl.exp2(s2.to(gl.float32) * scale2 - shift)
    if MASKED:
        p = gl.where((keys < limit)[None, :], p, 0.0)
        p2 = gl.where((keys < limit2)[None, :], p2, 0.0)
    total = total * alpha + gl.sum(p + p2, 1)
    return _fragments(p, O_LAYOUT), _fragments(p2, O_LAYOUT), alpha, total, new_best


@gluon.jit
def add_values(p, p2, alpha, v_ring, stage, acc, LAYOUT: gl.constexpr):
    """acc·alpha + p·v of both blocks. Tensor cores add FP8 in some 14 bits: pairs are summed outside, in true fp32."""
    values, values2 = v_ring.index(2 * stage).permute((1, 0)), v_ring.index(2 * stage + 1).permute((1, 0))
    product = warpgroup_mma(p, values, gl.zeros([64, 128], gl.float32, LAYOUT), use_acc=False, is_async=True)
    product = warpgroup_mma(p2, values2, product, is_async=True)
    shrink = gl.convert_layout(alpha, gl.SliceLayout(1, LAYOUT))[:, None]
    product = warpgroup_mma_wait(0, deps=[product])
    return acc * shrink + product


@gluon.jit
def load_queries(q, first, head, L, D: gl.constexpr, LAYOUT: gl.constexpr):
    """fp32 [64,128] of one head from row ``first``; zeros past the end."""
    rows = first + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    pointers = q + rows.to(gl.int64)[:, None] * D + (head * 128 + gl.arange(0, 128, gl.SliceLayout(0, LAYOUT)))[None, :]
    return gl.load(pointers, mask=(rows < L)[:, None], other=0.0).to(gl.float32)


@gluon.jit
def _features(x, z, LAYOUT: gl.constexpr):
    """φ(q) / (1e-5 + φ(q)·z) as bf16 [64,128]: e / Σ e·(1e-5 + z), with e = exp(q − max q)."""
    e = gl.exp2((x - gl.max(x, 1)[:, None]) * LOG2E)
    weights = 1e-5 + gl.load(z + gl.arange(0, 128, gl.SliceLayout(0, LAYOUT)))
    return (e * (1.0 / gl.sum(e * weights[None, :], 1))[:, None]).to(gl.bfloat16)


@gluon.jit
def add_linear_branch(
    acc,
    total,
    q,
    branches,
    matrix,
    first,
    head,
    tiles,
    L,
    D: gl.constexpr,
    O_LAYOUT: gl.constexpr,
    B_LAYOUT: gl.constexpr,
):
    """acc/total·v_scale + φ(q)·KV_proj / (1e-5 + φ(q)·z) + bias of the group's 64 queries, once kv_proj is there."""
    v_scale, z, bias = branches
    proj, proj_full, proj_empty = matrix
    columns = gl.arange(0, 128, gl.SliceLayout(0, O_LAYOUT))
    inverse = gl.convert_layout(1.0 / total, gl.SliceLayout(1, O_LAYOUT))[:, None]
    acc = acc * inverse * gl.load(v_scale + head * 128 + columns)[None, :] + gl.load(bias + columns)[None, :]
    F_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, B_LAYOUT, 2)
    phi = _features(load_queries(q, first, head, L, D, F_LAYOUT), z + head * 128, F_LAYOUT)
    mbarrier.wait(proj_full, tiles & 1)
    acc = warpgroup_mma(phi, proj, gl.convert_layout(acc, B_LAYOUT, assert_trivial=True), is_async=True)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(proj_empty, count=1)
    return acc


@gluon.jit
def _larger_maximum(mine, maxima, met, tiles, GROUP: gl.constexpr, ROW: gl.constexpr):
    """The largest of both groups' row maxima. Slots alternate: the slow group still reads when the fast one writes."""
    slot = (tiles & 1) * 2
    maxima.index(slot + GROUP).store(mine)
    mbarrier.arrive(met, count=1)
    mbarrier.wait(met, tiles & 1)
    return gl.maximum(gl.max(gl.maximum(mine, maxima.index(slot + 1 - GROUP).load(ROW)), 0), 1e-8)


@gluon.jit
def store_tile(
    o,
    o_scale,
    acc,
    maxima,
    met,
    first,
    tile,
    tiles,
    L,
    nq,
    GROUP: gl.constexpr,
    H: gl.constexpr,
    B_LAYOUT: gl.constexpr,
    QUANTIZE: gl.constexpr,
):
    """The group's 64 rows to o: bf16, or with QUANTIZE int8 under the scale of both groups' 128."""
    ROW: gl.constexpr = gl.SliceLayout(1, B_LAYOUT)
    D: gl.constexpr = H * 128
    head = tile // nq
    rows = first + gl.arange(0, 64, ROW)
    real = (rows < L)[:, None]
    columns = head * 128 + gl.arange(0, 128, gl.SliceLayout(0, B_LAYOUT))
    offsets = rows.to(gl.int64)[:, None] * D + columns[None, :]
    if QUANTIZE:
        acc = gl.where(real, acc, 0.0)
        amax = _larger_maximum(gl.max(gl.abs(acc), 1), maxima, met, tiles, GROUP, ROW)
        y = gl.minimum(gl.maximum(acc * (128.0 / amax), -128.0), 127.0)
        gl.store(o + offsets, (y + MAGIC).to(gl.int32, bitcast=True).to(gl.int8), mask=real)
        gl.store(o_scale + tile % nq * H + head, amax / 128.0)
    else:
        gl.store(o + offsets, acc.to(gl.bfloat16), mask=real)
