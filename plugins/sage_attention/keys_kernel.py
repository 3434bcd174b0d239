"""Statistics and quantization of k and v, and the linear branch's sums: one pass that reads, one that adds, one that
writes.

Layouts, with H heads of 128 columns, S keys, nk = ⌈S/64⌉ blocks: quantized k is int8 [H,nk,64,128]; quantized v is
fp8 [H,nk,128,64] (transposed: FP8 tensor cores read their second operand along keys; keys in fragment_order). Every
tile is contiguous and zero after the last key, so that the loop over blocks needs neither masks nor strides.

With FRAGMENTS tiles are in the order in which mma_kernel's threads hold operands: k [2,64,64], halves of the channels;
v fp8 [128,64] in whole_order or fp16 [2,128,32] in half_order; kv_proj [H,column,channel].
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from plugins.expr import Dim, ceil_div
from plugins.plan_builder import Buffer, Launch
from plugins.sage_attention.primitives_kernel import (
    BLOCK_K,
    HEAD,
    feature_map,
    load_rows,
    round_to_int8,
    scalar,
)


@triton.jit
def fragment_order(x):
    """Reorder the 64 columns (keys) of x [128,64]: 16 keys (jj, q, b) of 2 × 4 × 2 become (q, jj, b).

    A score tile leaves the tensor cores with keys 2q, 2q+1 of each 8 in thread q of a quad; an 8-bit operand wants
    4q … 4q+3 of each 16. The sum over keys may run in any order, so v takes the order that p's registers already have.
    """
    groups = tl.reshape(x, [HEAD, BLOCK_K // 16, 2, 4, 2])
    return tl.reshape(tl.permute(groups, (0, 1, 3, 2, 4)), [HEAD, BLOCK_K])


@triton.jit
def whole_order(x):
    """Reorder the 64 columns (keys) of x [128,64]: keys (j, q, b) of 8 × 4 × 2 become (q, j, b). mma_kernel's fp8 v."""
    return tl.reshape(tl.permute(tl.reshape(x, [HEAD, 8, 4, 2]), (0, 2, 1, 3)), [HEAD, BLOCK_K])


@triton.jit
def half_order(x):
    """x [128,64] as [2·128,32]: keys (h, j, q, b) of 2 × 4 × 4 × 2 become (q, j, b) of half h. mma_kernel's fp16 v."""
    return tl.reshape(tl.permute(tl.reshape(x, [HEAD, 2, 4, 4, 2]), (1, 0, 3, 2, 4)), [2 * HEAD, 32])


@triton.jit
def kv_pass(k, v, pool, ksum, vmax, kv, z, S, D: tl.constexpr, E: tl.constexpr, LINEAR: tl.constexpr):
    """Partial sums over one split of the keys of one head. Grid (splits, H).

    ksum = Σk, vmax = max|v| fp32 [H,splits,128]; with LINEAR also pool = Σ of each block's k [H,nk,128],
    kv = φ(k)ᵀv [H,splits,128,128], z = Σφ(k) [H,splits,128], all fp32.
    Sums over keys other than a block's stay tiles of 16 rows until the end: 16 rows lie in one thread each, and sums
    over all cross warps.
    """
    split, head = tl.program_id(0), tl.program_id(1)
    ROWS: tl.constexpr = 16
    c = tl.arange(0, HEAD)
    nk = tl.cdiv(S, BLOCK_K)
    share = tl.cdiv(nk, tl.num_programs(0))
    k_total = tl.zeros([HEAD], tl.float32)
    v_top = tl.zeros([ROWS, HEAD], tl.bfloat16)
    z_sums = tl.zeros([ROWS, HEAD], tl.float32)
    kv_total = tl.zeros([HEAD, HEAD], tl.float32)
    first, end = split * share, tl.minimum(split * share + share, nk)
    keys_ahead = load_rows(k, scalar(first), head, S, BLOCK_K, D, 0)
    values_ahead = load_rows(v, scalar(first), head, S, BLOCK_K, E, E - D)
    for i in range(first, end):
        block = scalar(i)
        keys, values = keys_ahead.to(tl.float32), values_ahead
        # Rows past the end are not read: the last of these loads is masked out.
        keys_ahead = load_rows(k, block + 1, head, S, BLOCK_K, D, 0)
        block_sum = tl.sum(keys, 0)
        k_total += block_sum
        block_top = tl.max(tl.reshape(tl.abs(values.to(tl.float32)), [BLOCK_K // ROWS, ROWS, HEAD]), 0)
        v_top = tl.maximum(v_top.to(tl.float32), block_top).to(tl.bfloat16)  # exact, in half the registers
        values_ahead = load_rows(v, block + 1, head, S, BLOCK_K, E, E - D)
        if LINEAR:
            tl.store(pool + (head * nk + block) * HEAD + c, block_sum)
            real = block * BLOCK_K + tl.arange(0, BLOCK_K) < S
            phi = tl.where(real[:, None], feature_map(keys), 0.0)
            z_sums += tl.sum(tl.reshape(phi, [BLOCK_K // ROWS, ROWS, HEAD]), 0)
            kv_total = tl.dot(tl.trans(phi.to(tl.bfloat16)), values, kv_total)
    part = head * tl.num_programs(0) + split
    tl.store(vmax + part * HEAD + c, tl.max(v_top.to(tl.float32), 0))
    tl.store(ksum + part * HEAD + c, k_total)
    if LINEAR:
        tl.store(z + part * HEAD + c, tl.sum(z_sums, 0))
        tl.store(kv + part * HEAD * HEAD + c[:, None] * HEAD + c[None, :], kv_total)


@triton.jit
def kv_reduce(
    ksum,
    vmax,
    kv,
    z,
    weight,
    kmean,
    vscale,
    kv_proj,
    z_total,
    S,
    splits,
    V_MAX: tl.constexpr,
    ROWS: tl.constexpr,
    LINEAR: tl.constexpr,
    FRAGMENTS: tl.constexpr,
):
    """Add the splits, ROWS of the 128 channels a program. Grid (128/ROWS, H).

    kmean, z_total, vscale = max|v| / V_MAX fp32 [H,128]; kv_proj = KV·weightᵀ bf16 [H,128,128] (proj_l in KV).
    """
    head = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, HEAD)
    k_total = tl.zeros([ROWS], tl.float32)
    v_amax = tl.zeros([ROWS], tl.float32)
    z_sum = tl.zeros([ROWS], tl.float32)
    kv_sum = tl.zeros([ROWS, HEAD], tl.float32)
    for part in range(head * splits, head * splits + splits):
        k_total += tl.load(ksum + part * HEAD + rows)
        v_amax = tl.maximum(v_amax, tl.load(vmax + part * HEAD + rows))
        if LINEAR:
            z_sum += tl.load(z + part * HEAD + rows)
            kv_sum += tl.load(kv + part * HEAD * HEAD + rows[:, None] * HEAD + c[None, :])
    tl.store(kmean + head * HEAD + rows, k_total / S)
    tl.store(vscale + head * HEAD + rows, tl.maximum(v_amax, 1e-8) / V_MAX)
    if LINEAR:
        weight_t = tl.load(weight + c[None, :] * HEAD + c[:, None])
        projected = tl.dot(kv_sum, weight_t, input_precision="tf32x3")  # 22 bits, and then rounded to bf16
        tl.store(z_total + head * HEAD + rows, z_sum)
        offsets = rows[:, None] + c[None, :] * HEAD if FRAGMENTS else rows[:, None] * HEAD + c[None, :]
        tl.store(kv_proj + head * (HEAD * HEAD) + offsets, projected.to(tl.bfloat16))


@triton.jit
def kv_quantize(
    k,
    v,
    kmean,
    vscale,
    kq,
    kscale,
    vq,
    S,
    D: tl.constexpr,
    E: tl.constexpr,
    PV: tl.constexpr,
    V_MAX: tl.constexpr,
    FRAGMENTS: tl.constexpr,
):
    """k − kmean to int8 with a scale per block, v to PV within ±V_MAX with a scale per channel. Grid (nk, H)."""
    block, head = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, HEAD)
    rows = tl.arange(0, BLOCK_K)
    tile = head * tl.num_programs(0) + block
    real = block * BLOCK_K + rows < S
    keys = load_rows(k, block, head, S, BLOCK_K, D, 0).to(tl.float32) - tl.load(kmean + head * HEAD + c)[None, :]
    keys = tl.where(real[:, None], keys, 0.0)
    amax = tl.maximum(tl.max(tl.abs(keys)), 1e-8)
    tl.store(kscale + tile, amax / 127.0)
    out = rows[:, None] * HEAD + c[None, :]
    keys_out = (c // 64 * (BLOCK_K * 64) + c % 64)[None, :] + rows[:, None] * 64 if FRAGMENTS else out
    tl.store(kq + tile.to(tl.int64) * (BLOCK_K * HEAD) + keys_out, round_to_int8(keys * (127.0 / amax)))
    values = load_rows(v, block, head, S, BLOCK_K, E, E - D).to(tl.float32)
    values = values * (1.0 / tl.load(vscale + head * HEAD + c))[None, :]
    vq += tile.to(tl.int64) * (BLOCK_K * HEAD)
    if PV == "fp8":
        values = tl.minimum(tl.maximum(values, -V_MAX), V_MAX).to(tl.float8e4nv)
        ordered = whole_order(tl.trans(values)) if FRAGMENTS else fragment_order(tl.trans(values))
        tl.store(vq + c[:, None] * BLOCK_K + rows[None, :], ordered)
    else:
        line = tl.arange(0, 2 * HEAD)[:, None] * 32 + tl.arange(0, 32)[None, :]
        tl.store(vq + line, half_order(tl.trans(values.to(tl.float16))))


def statistics_launches(
    s: Dim, d: int, e: int, linear: Mapping[str, str] | None, v_max: float, fragments: bool
) -> tuple[list[Buffer], list[Launch]]:
    """kv_pass and kv_reduce. ``linear`` names proj_weight's tensor under "weight" if the linear branch is wanted."""
    heads = d // 128
    splits = min(64, 1280 // heads + 1)  # about ten programs an SM
    names = ("pool", "kv", "z", "kv_proj", "z_total", "weight")
    optional = {n: (linear or {}).get(n, n) for n in names} if linear is not None else {}
    absent = {} if linear is not None else dict.fromkeys(names)
    buffers = [Buffer(name, "fp32", (heads, splits, 128)) for name in ("ksum", "vmax")]
    buffers += [Buffer(name, "fp32", (heads, 128)) for name in ("kmean", "vscale")]
    if linear is not None:
        buffers += [
            Buffer("pool", "fp32", (heads, ceil_div(s, 64), 128)),
            Buffer("kv", "fp32", (heads, splits, 128, 128)),
            Buffer("z", "fp32", (heads, splits, 128)),
            Buffer("kv_proj", "bf16", (heads, 128, 128)),
            Buffer("z_total", "fp32", (heads, 128)),
        ]
    shared = {"ksum": "ksum", "vmax": "vmax", "S": s}
    flags = {"LINEAR": linear is not None}

    def pick(source: Mapping, wanted: tuple[str, ...]) -> dict:
        return {name: source[name] for name in wanted if name in source}

    first, second = ("pool", "kv", "z"), ("kv", "z", "weight", "kv_proj", "z_total")
    run = Launch(
        kv_pass,
        (splits, heads, 1),
        {"k": "k", "v": "v"} | shared | pick(optional, first),
        {"D": d, "E": e} | flags | pick(absent, first),
        num_warps=8,
        num_stages=1,
    )
    add = Launch(
        kv_reduce,
        (8, heads, 1),
        {"kmean": "kmean", "vscale": "vscale", "splits": splits} | shared | pick(optional, second),
        {"ROWS": 16, "V_MAX": v_max, "FRAGMENTS": fragments} | flags | pick(absent, second),
        num_warps=8,
    )
    return buffers, [run, add]


def quantize_launches(
    s: Dim, d: int, e: int, pv: str, v_max: float, fragments: bool
) -> tuple[list[Buffer], list[Launch]]:
    """kv_quantize and its buffers."""
    heads, nk = d // 128, ceil_div(s, 64)
    buffers = [
        Buffer("kq", "int8", (heads, nk, 64, 128)),
        Buffer("kscale", "fp32", (heads, nk)),
        Buffer("vq", pv, (heads, nk, 64, 128)),
    ]
    args = {name: name for name in ("k", "v", "kmean", "vscale", "kq", "kscale", "vq")}
    constants = {"D": d, "E": e, "PV": pv, "V_MAX": v_max, "FRAGMENTS": fragments}
    return buffers, [Launch(kv_quantize, (nk, heads, 1), args | {"S": s}, constants)]
