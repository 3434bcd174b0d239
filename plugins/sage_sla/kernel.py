"""SageSLA's launch plan, and the Triton kernels that choose the key blocks.

Statistics, quantization and the attention itself are plugins.sage_attention's; sm_90 has its own in hopper.py.
Limit: L ≤ 131072, because a row of scores is selected in registers (MAX_BLOCKS = 2048 blocks of 64 keys).
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from plugins.errors import UserError
from plugins.expr import Dim, ceil_div, minimum
from plugins.plan_builder import Buffer, Launch, LaunchPlan
from plugins.sage_attention.kernel import attention_config, attention_launch, check_widths
from plugins.sage_attention.keys_kernel import quantize_launches, statistics_launches
from plugins.sage_attention.primitives_kernel import BLOCK_K, BLOCK_Q, HEAD, load_rows
from plugins.sage_sla.hopper import sage_sla_hopper
from plugins.sage_sla.op import kept_count
from plugins.sms import HOPPER_SMS

MAX_BLOCKS = 2048


@triton.jit
def pool_queries(q, pooled, L, D: tl.constexpr):
    """Mean of each q block over its real rows: q bf16 [L,D] → fp32 [H,nq,128]. Grid (nq, H)."""
    block, head = tl.program_id(0), tl.program_id(1)
    rows = load_rows(q, block, head, L, BLOCK_Q, D, 0).to(tl.float32)
    mean = tl.sum(rows, 0) / tl.minimum(L - block * BLOCK_Q, BLOCK_Q)
    tl.store(pooled + (head * tl.num_programs(0) + block) * HEAD + tl.arange(0, HEAD), mean)


@triton.jit
def block_scores(pooled_q, pool, kmean, scores, L, nq, nk, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """pooled q · (pooled k − kmean), fp32 [H,nq,nk]. Grid (⌈nk/BLOCK⌉, ⌈nq/BLOCK⌉, H).

    pool holds block sums of k. Three TF32 products give fp32's accuracy: the kept set must not depend on the GPU.
    """
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(2)
    count = tl.maximum(tl.minimum(L - columns * BLOCK_K, BLOCK_K), 1).to(tl.float32)
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, HEAD, DEPTH):
        c = start + tl.arange(0, DEPTH)
        a = tl.load(pooled_q + (head * nq + rows[:, None]) * HEAD + c[None, :], mask=(rows < nq)[:, None], other=0.0)
        b = tl.load(pool + (head * nk + columns[:, None]) * HEAD + c[None, :], mask=(columns < nk)[:, None], other=0.0)
        b = b / count[:, None] - tl.load(kmean + head * HEAD + c)[None, :]
        acc = tl.dot(a, tl.trans(b), acc, input_precision="tf32x3")
    out = scores + (head * nq + rows[:, None]).to(tl.int64) * nk + columns[None, :]
    tl.store(out, acc, mask=(rows < nq)[:, None] & (columns < nk)[None, :])


@triton.jit
def select_blocks(scores, lut, nk, kept, BLOCKS: tl.constexpr):
    """Indices of the ``kept`` best of a row's nk scores, ascending; equal scores keep the lower index. Grid (nq, H).

    scores fp32 [H,nq,nk] → lut int32 [H,nq,kept]. A score's bits, sign folded, order like the score, so the kept-th
    best is found by 32 counting steps. Any bits (NaN too) are ordered: the row is always written in full.
    """
    row = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    i = tl.arange(0, BLOCKS)
    real = i < nk
    bits = tl.load(scores + row * nk + i, mask=real, other=0.0).to(tl.uint32, bitcast=True)
    keys = tl.where((bits >> 31) == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    keys = tl.where(real, keys, 0)
    threshold = tl.full([], 0, tl.uint32)
    step = tl.full([], 0x80000000, tl.uint32)
    found = nk
    # A threshold that leaves exactly ``kept`` keys is as good as the kept-th key itself: most rows stop early.
    while (step != 0) & (found != kept):
        candidate = threshold | step
        count = tl.sum((keys >= candidate).to(tl.int32))
        found = tl.where(count >= kept, count, found)
        threshold = tl.where(count >= kept, candidate, threshold)
        step = step >> 1
    above = keys > threshold
    equal = ((keys == threshold) & real).to(tl.int32)
    spare = kept - tl.sum(above.to(tl.int32))
    keep = above | ((equal == 1) & (tl.cumsum(equal) <= spare))
    place = tl.cumsum(keep.to(tl.int32)) - 1
    tl.store(lut + row * kept + place, i, mask=keep)


def selection_launches(length: Dim, d: int, kept: Dim) -> tuple[list[Buffer], list[Launch]]:
    """pool_queries, block_scores and select_blocks, with their buffers."""
    heads, nq, nk = d // 128, ceil_div(length, 128), ceil_div(length, 64)
    buffers = [
        Buffer("pooled_q", "fp32", (heads, nq, 128)),
        Buffer("scores", "fp32", (heads, nq, nk)),
        Buffer("lut", "int32", (heads, nq, kept)),
    ]
    score_args = {"pooled_q": "pooled_q", "pool": "pool", "kmean": "kmean", "scores": "scores", "L": length}
    score_grid = (ceil_div(nk, 64), ceil_div(nq, 64), heads)
    launches = [
        Launch(pool_queries, (nq, heads, 1), {"q": "q", "pooled": "pooled_q", "L": length}, {"D": d}),
        Launch(block_scores, score_grid, score_args | {"nq": nq, "nk": nk}, {"BLOCK": 64, "DEPTH": 32}),
        Launch(
            select_blocks,
            (nq, heads, 1),
            {"scores": "scores", "lut": "lut", "nk": nk, "kept": kept},
            {"BLOCKS": MAX_BLOCKS},
        ),
    ]
    return buffers, launches


def hopper_launch(length: Dim, d: int, kept: Dim, quantize: bool) -> Launch:
    """sage_sla_hopper, one program an SM."""
    heads, nq, nk = d // 128, ceil_div(length, 128), ceil_div(length, 64)
    args: dict[str, str | Dim] = {name: name for name in ("q", "o", "kq", "vq", "lut", "kv_proj")}
    args |= {"k_scale": "kscale", "v_scale": "vscale", "z": "z_total", "bias": "proj_bias"}
    args |= {"L": length, "nq": nq, "nk": nk, "kept": kept} | ({"o_scale": "o_scale"} if quantize else {})
    constants = {"H": heads, "STAGES": 5, "QUANTIZE": quantize} | ({} if quantize else {"o_scale": None})
    return Launch(sage_sla_hopper, (minimum(nq * heads, HOPPER_SMS), 1, 1), args, constants, num_warps=4)


def _plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int, quantize: bool) -> LaunchPlan:
    length, d, e = dims["L"], dims["D"], dims["E"]
    check_widths(d, e)
    topk_milli = int(attributes["topk_milli"])
    if not 1 <= topk_milli <= 1000:
        raise UserError("topk_milli is thousandths of the key blocks", expected="1 to 1000", got=str(topk_milli))
    config = attention_config(str(attributes["precision"]), sm, dense=False)
    kept = kept_count(ceil_div(length, 64), topk_milli)
    linear = {"weight": "proj_weight"}
    stages = [
        statistics_launches(length, d, e, linear, config.v_max, config.fragments),
        selection_launches(length, d, kept),
    ]
    if config.pv != "bf16":
        stages.append(quantize_launches(length, d, e, config.pv, config.v_max, config.fragments))
    buffers = [buffer for stage, _ in stages for buffer in stage]
    launches = [launch for _, stage in stages for launch in stage]
    if sm == 90 and config.pv == "fp8":
        launches.append(hopper_launch(length, d, kept, quantize))
    else:
        launches.append(attention_launch(length, length, d, e, config, kept, quantize))
    return LaunchPlan(tuple(buffers), tuple(launches))


def launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """SageSLA's plan."""
    return _plan(dims, attributes, sm, False)


def quantize_launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """SageSLAQuantize's plan."""
    return _plan(dims, attributes, sm, True)
