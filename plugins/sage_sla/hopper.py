"""SageSLA's attention for sm_90 in Gluon: a TMA producer warp feeds two consumer warpgroups of 64 queries each.

The two take turns at the tensor cores: while one computes its softmax, the other's products run (14.8 ms at 14B-720p
on the H200, 15.6 without turns). A stage of the ring holds two key blocks (k and v, 32 KiB). The limits for each score
are its two products (6 ms in all), its exponential (16 a clock and SM: 6 ms) and some nine other instructions (7 ms);
they overlap in part. The grid is persistent; a head's tiles run together, so that its quantized k and v stay in L2.
This file has the kernel and what its warps do in turn; hopper_tiles.py has the arithmetic of one tile.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from plugins.sage_attention.primitives_kernel import SCORE_SCALE as _SCORE_SCALE
from plugins.sage_sla.hopper_tiles import (
    add_linear_branch,
    add_values,
    enter_turn,
    leave_turn,
    load_queries,
    scores,
    softmax_step,
    store_tile,
)
from plugins.triton_math import MAGIC

SCORE_SCALE = gl.constexpr(_SCORE_SCALE.value)


@gluon.jit
def _produce(lut, kq, k_scale, vq, kv_proj, rings, nq, nk, kept, H: gl.constexpr):
    """Keep the ring full of pairs of kept blocks with their k scales; a tile's kv_proj follows its last pair."""
    k_ring, v_ring, scale_ring, proj, full, empty, proj_full, proj_empty = rings
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
def _consume(
    GROUP: gl.constexpr, q, o, o_scale, lut, branches, memory, L, nq, kept, H: gl.constexpr, QUANTIZE: gl.constexpr
):
    """Queries 64·GROUP… of every tile of 128."""
    k_ring, v_ring, scale_ring, proj, maxima, full, empty, proj_full, proj_empty, turn, met = memory
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
        x = load_queries(q, first, head, L, D, gl.DotOperandLayout(0, S_LAYOUT, 4))
        amax = gl.maximum(gl.max(gl.max(gl.abs(x), 1), 0), 1e-8)
        queries = (x * (127.0 / amax) + MAGIC).to(gl.int32, bitcast=True).to(gl.int8)
        q_scale = amax * (SCORE_SCALE / 127.0)
        chosen = lut + tile.to(gl.int64) * kept
        acc = gl.zeros([64, 128], gl.float32, O_LAYOUT)
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, S_LAYOUT))
        best = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
        enter_turn(turn, GROUP, turns)
        s, s2 = scores(queries, k_ring, full, step, STAGES, S_LAYOUT)
        leave_turn(turn, GROUP)
        for pair in range(pairs - 1):
            stage = step % STAGES
            p, p2, alpha, total, best = softmax_step(
                s, s2, scale_ring, stage, q_scale, total, best, 64, 64, S_LAYOUT, O_LAYOUT, False
            )
            enter_turn(turn, GROUP, turns + 1 + pair)
            acc = add_values(p, p2, alpha, v_ring, stage, acc, O_LAYOUT)
            mbarrier.arrive(empty.index(stage), count=1)
            step += 1
            s, s2 = scores(queries, k_ring, full, step, STAGES, S_LAYOUT)
            leave_turn(turn, GROUP)
        # The last pair may hold the short last block, and its second block is none of ours if kept is odd.
        stage = step % STAGES
        limit = L - gl.load(chosen + 2 * pairs - 2) * 64
        limit2 = gl.where(kept % 2 == 0, L - gl.load(chosen + kept - 1) * 64, 0)
        p, p2, alpha, total, best = softmax_step(
            s, s2, scale_ring, stage, q_scale, total, best, limit, limit2, S_LAYOUT, O_LAYOUT, True
        )
        enter_turn(turn, GROUP, turns + pairs)
        acc = add_values(p, p2, alpha, v_ring, stage, acc, O_LAYOUT)
        leave_turn(turn, GROUP)
        mbarrier.arrive(empty.index(stage), count=1)
        step += 1
        turns += pairs + 1

        matrix = (proj, proj_full, proj_empty)
        acc = add_linear_branch(acc, total, q, branches, matrix, first, head, tiles, L, D, O_LAYOUT, B_LAYOUT)
        store_tile(o, o_scale, acc, maxima, met, first, tile, tiles, L, nq, GROUP, H, B_LAYOUT, QUANTIZE)
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
    branches = (v_scale, z, bias)
    memory = (k_ring, v_ring, scale_ring, proj, maxima, full, empty, proj_full, proj_empty, turn, met)
    rings = (k_ring, v_ring, scale_ring, proj, full, empty, proj_full, proj_empty)
    # Two consumers, then the producer; Triton's compiler reads no starred arguments.
    gl.warp_specialize(
        [
            (_consume, (0, q, o, o_scale, lut, branches, memory, L, nq, kept, H, QUANTIZE)),
            (_consume, (1, q, o, o_scale, lut, branches, memory, L, nq, kept, H, QUANTIZE)),
            (_produce, (lut, kq, k_scale, vq, kv_proj, rings, nq, nk, kept, H)),
        ],
        [4, 1],
        [232, 40],
    )
