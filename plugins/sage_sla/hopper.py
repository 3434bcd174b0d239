"""SageSLA's attention for sm_90 in Gluon: a TMA producer warp feeds two consumer warpgroups of 64 queries each.

The two take turns at the tensor cores: while one computes its softmax, the other's products run (14.8 ms at 14B-720p
on the H200, 15.6 without turns). A stage of the ring holds two key blocks (k and v, 32 KiB). The limits for each score
are its two products (6 ms in all), its exponential (16 a clock and SM: 6 ms) and some nine other instructions (7 ms);
they overlap in part. The grid is persistent; a head's tiles run together, so that its quantized k and v stay in L2.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from plugins.sage_attention.primitives_kernel import FP8_SHIFT as _FP8_SHIFT
from plugins.sage_attention.primitives_kernel import LOG2E as _LOG2E
from plugins.sage_attention.primitives_kernel import SCORE_SCALE as _SCORE_SCALE
from plugins.triton_math import MAGIC

LOG2E = gl.constexpr(_LOG2E.value)
FP8_SHIFT = gl.constexpr(_FP8_SHIFT.value)
SCORE_SCALE = gl.constexpr(_SCORE_SCALE.value)
NEVER = gl.constexpr(-(1 << 21))  # below any int32 score (128 products of ±127)


@gluon.jit
def _produce(
    lut,
    kq,
    k_scale,
    vq,
    kv_proj,
    k_ring,
    v_ring,
    scale_ring,
    proj,
    full,
    empty,
    proj_full,
    proj_empty,
    nq,
    nk,
    kept,
    H: gl.constexpr,
):
    """Keep the ring full of pairs of kept blocks with their k scales; a tile's kv_proj follows its last pair."""
    STAGES: gl.constexpr = full.shape[0]
    both = gl.arange(0, 2, gl.BlockedLayout([1], [32], [1], [0]))
    k_tiles = tma.make_tensor_descriptor(kq, [H * nk * 64, 128], [128, 1], [64, 128], k_ring.type.layout)
    v_tiles = tma.make_tensor_descriptor(vq, [H * nk * 128, 64], [64, 1], [128, 64], v_ring.type.layout)
    matrices = tma.make_tensor_descriptor(kv_proj, [H * 128, 128], [128, 1], [128, 128], proj.type.layout)
    pairs = (kept + 1) // 2
    step = 0
    turn = 0
    for tile in range(gl.program_id(0), nq * H, gl.num_programs(0)):
        head = tile // nq
        chosen = lut + tile.to(gl.int64) * kept
        base = head * nk
        first = gl.load(chosen)
        second = gl.load(chosen + gl.minimum(1, kept - 1))
        # Block numbers are read two steps ahead and scales one, so that no step waits for memory.
        scales = gl.load(k_scale + base + gl.load(chosen + gl.minimum(both, kept - 1)))
        ahead = gl.load(chosen + gl.minimum(2 + both, kept - 1))
        for pair in range(pairs):
            next_scales = gl.load(k_scale + base + ahead)
            ahead = gl.load(chosen + gl.minimum(2 * pair + 4 + both, kept - 1))
            next_first = gl.load(chosen + gl.minimum(2 * pair + 2, kept - 1))
            next_second = gl.load(chosen + gl.minimum(2 * pair + 3, kept - 1))
            stage = step % STAGES
            ready = full.index(stage)
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            scale_ring.index(stage).store(scales)
            mbarrier.expect(ready, 4 * 64 * 128)
            tma.async_copy_global_to_shared(k_tiles, [(base + first) * 64, 0], ready, k_ring.index(2 * stage))
            tma.async_copy_global_to_shared(k_tiles, [(base + second) * 64, 0], ready, k_ring.index(2 * stage + 1))
            tma.async_copy_global_to_shared(v_tiles, [(base + first) * 128, 0], ready, v_ring.index(2 * stage))
            tma.async_copy_global_to_shared(v_tiles, [(base + second) * 128, 0], ready, v_ring.index(2 * stage + 1))
            step += 1
            first = next_first
            second = next_second
            scales = next_scales
        mbarrier.wait(proj_empty, (turn & 1) ^ 1)
        mbarrier.expect(proj_full, 128 * 128 * 2)
        tma.async_copy_global_to_shared(matrices, [head * 128, 0], proj_full, proj)
        turn += 1


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
def _enter(turn, GROUP: gl.constexpr, count):
    """Wait for this group's turn at the tensor cores, number ``count``; group 0 has the first."""
    mbarrier.wait(turn.index(GROUP), (count & 1) ^ (1 - GROUP))


@gluon.jit
def _leave(turn, GROUP: gl.constexpr):
    """Give the turn to the other group."""
    mbarrier.arrive(turn.index(1 - GROUP), count=1)


@gluon.jit
def _scores(q, k_ring, full, step, STAGES: gl.constexpr, LAYOUT: gl.constexpr):
    """int32 q·kᵀ [64,64] of both blocks of a step, once they are there."""
    stage = step % STAGES
    mbarrier.wait(full.index(stage), (step // STAGES) & 1)
    zeros = gl.zeros([64, 64], gl.int32, LAYOUT)
    s = warpgroup_mma(q, k_ring.index(2 * stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
    s2 = warpgroup_mma(q, k_ring.index(2 * stage + 1).permute((1, 0)), zeros, use_acc=False, is_async=True)
    return warpgroup_mma_wait(0, deps=[s, s2])


@gluon.jit
def _softmax(
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
def _accumulate(p, p2, alpha, v_ring, stage, acc, LAYOUT: gl.constexpr):
    """acc·alpha + p·v of both blocks. Tensor cores add FP8 in some 14 bits: pairs are summed outside, in true fp32."""
    values, values2 = v_ring.index(2 * stage).permute((1, 0)), v_ring.index(2 * stage + 1).permute((1, 0))
    product = warpgroup_mma(p, values, gl.zeros([64, 128], gl.float32, LAYOUT), use_acc=False, is_async=True)
    product = warpgroup_mma(p2, values2, product, is_async=True)
    shrink = gl.convert_layout(alpha, gl.SliceLayout(1, LAYOUT))[:, None]
    product = warpgroup_mma_wait(0, deps=[product])
    return acc * shrink + product


@gluon.jit
def _load_queries(q, first, head, L, D: gl.constexpr, LAYOUT: gl.constexpr):
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
def _add_linear_branch(
    acc,
    total,
    q,
    v_scale,
    z,
    bias,
    proj,
    proj_full,
    proj_empty,
    first,
    head,
    tiles,
    L,
    D: gl.constexpr,
    O_LAYOUT: gl.constexpr,
    B_LAYOUT: gl.constexpr,
):
    """acc/total·v_scale + φ(q)·KV_proj / (1e-5 + φ(q)·z) + bias of the group's 64 queries, once kv_proj is there."""
    columns = gl.arange(0, 128, gl.SliceLayout(0, O_LAYOUT))
    inverse = gl.convert_layout(1.0 / total, gl.SliceLayout(1, O_LAYOUT))[:, None]
    acc = acc * inverse * gl.load(v_scale + head * 128 + columns)[None, :] + gl.load(bias + columns)[None, :]
    F_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, B_LAYOUT, 2)
    phi = _features(_load_queries(q, first, head, L, D, F_LAYOUT), z + head * 128, F_LAYOUT)
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
def _store_tile(
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


@gluon.jit
def _consume(
    GROUP: gl.constexpr,
    q,
    o,
    o_scale,
    v_scale,
    lut,
    z,
    bias,
    k_ring,
    v_ring,
    scale_ring,
    proj,
    maxima,
    full,
    empty,
    proj_full,
    proj_empty,
    turn,
    met,
    L,
    nq,
    nk,
    kept,
    H: gl.constexpr,
    QUANTIZE: gl.constexpr,
):
    """Queries 64·GROUP… of every tile of 128."""
    STAGES: gl.constexpr = full.shape[0]
    D: gl.constexpr = H * 128
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 32])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    B_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    pairs = (kept + 1) // 2
    step = 0
    turns = 0
    tiles = 0
    for tile in range(gl.program_id(0), nq * H, gl.num_programs(0)):
        head = tile // nq
        first = tile % nq * 128 + GROUP * 64
        x = _load_queries(q, first, head, L, D, gl.DotOperandLayout(0, S_LAYOUT, 4))
        amax = gl.maximum(gl.max(gl.max(gl.abs(x), 1), 0), 1e-8)
        queries = (x * (127.0 / amax) + MAGIC).to(gl.int32, bitcast=True).to(gl.int8)
        q_scale = amax * (SCORE_SCALE / 127.0)
        chosen = lut + tile.to(gl.int64) * kept
        acc = gl.zeros([64, 128], gl.float32, O_LAYOUT)
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, S_LAYOUT))
        best = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
        _enter(turn, GROUP, turns)
        s, s2 = _scores(queries, k_ring, full, step, STAGES, S_LAYOUT)
        _leave(turn, GROUP)
        for pair in range(pairs - 1):
            stage = step % STAGES
            p, p2, alpha, total, best = _softmax(
                s, s2, scale_ring, stage, q_scale, total, best, 64, 64, S_LAYOUT, O_LAYOUT, False
            )
            _enter(turn, GROUP, turns + 1 + pair)
            acc = _accumulate(p, p2, alpha, v_ring, stage, acc, O_LAYOUT)
            mbarrier.arrive(empty.index(stage), count=1)
            step += 1
            s, s2 = _scores(queries, k_ring, full, step, STAGES, S_LAYOUT)
            _leave(turn, GROUP)
        # The last pair may hold the short last block, and its second block is none of ours if kept is odd.
        stage = step % STAGES
        limit = L - gl.load(chosen + 2 * pairs - 2) * 64
        limit2 = gl.where(kept % 2 == 0, L - gl.load(chosen + kept - 1) * 64, 0)
        p, p2, alpha, total, best = _softmax(
            s, s2, scale_ring, stage, q_scale, total, best, limit, limit2, S_LAYOUT, O_LAYOUT, True
        )
        _enter(turn, GROUP, turns + pairs)
        acc = _accumulate(p, p2, alpha, v_ring, stage, acc, O_LAYOUT)
        _leave(turn, GROUP)
        mbarrier.arrive(empty.index(stage), count=1)
        step += 1
        turns += pairs + 1

        acc = _add_linear_branch(
            acc, total, q, v_scale, z, bias, proj, proj_full, proj_empty, first, head, tiles, L, D, O_LAYOUT, B_LAYOUT
        )
        _store_tile(o, o_scale, acc, maxima, met, first, tile, tiles, L, nq, GROUP, H, B_LAYOUT, QUANTIZE)
        tiles += 1


@gluon.jit
def sage_sla_hopper(
    q,
    o,
    o_scale,
    kq,
    k_scale,
    vq,
    v_scale,
    lut,
    kv_proj,
    z,
    bias,
    L,
    nq,
    nk,
    kept,
    H: gl.constexpr,
    STAGES: gl.constexpr,
    QUANTIZE: gl.constexpr,
):
    """Tensors as flash_attention's with SPARSE and PV = "fp8". Any number of programs, one an SM is best."""
    k_ring = gl.allocate_shared_memory(gl.int8, [2 * STAGES, 64, 128], gl.NVMMASharedLayout(128, 8, 2))
    v_ring = gl.allocate_shared_memory(gl.float8e4nv, [2 * STAGES, 128, 64], gl.NVMMASharedLayout(64, 8, 2))
    scale_ring = gl.allocate_shared_memory(gl.float32, [STAGES, 2], gl.SwizzledSharedLayout(1, 1, 1, order=[0]))
    proj = gl.allocate_shared_memory(gl.bfloat16, [128, 128], gl.NVMMASharedLayout(128, 16, 2))
    maxima = gl.allocate_shared_memory(gl.float32, [4, 64], gl.SwizzledSharedLayout(1, 1, 1, order=[0]))
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    proj_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    proj_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    met = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    mbarrier.init(proj_full, count=1)
    mbarrier.init(proj_empty, count=2)
    for i in gl.static_range(2):
        mbarrier.init(turn.index(i), count=1)
    mbarrier.init(met, count=2)
    # Two consumers, then the producer; Triton's compiler reads no starred arguments.
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    0,
                    q,
                    o,
                    o_scale,
                    v_scale,
                    lut,
                    z,
                    bias,
                    k_ring,
                    v_ring,
                    scale_ring,
                    proj,
                    maxima,
                    full,
                    empty,
                    proj_full,
                    proj_empty,
                    turn,
                    met,
                    L,
                    nq,
                    nk,
                    kept,
                    H,
                    QUANTIZE,
                ),
            ),
            (
                _consume,
                (
                    1,
                    q,
                    o,
                    o_scale,
                    v_scale,
                    lut,
                    z,
                    bias,
                    k_ring,
                    v_ring,
                    scale_ring,
                    proj,
                    maxima,
                    full,
                    empty,
                    proj_full,
                    proj_empty,
                    turn,
                    met,
                    L,
                    nq,
                    nk,
                    kept,
                    H,
                    QUANTIZE,
                ),
            ),
            (
                _produce,
                (
                    lut,
                    kq,
                    k_scale,
                    vq,
                    kv_proj,
                    k_ring,
                    v_ring,
                    scale_ring,
                    proj,
                    full,
                    empty,
                    proj_full,
                    proj_empty,
                    nq,
                    nk,
                    kept,
                    H,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )
