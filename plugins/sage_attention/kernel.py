"""Triton kernels of SageAttention, shared with SageSLA: statistics and quantization of k and v, and flash attention.

Layouts, with H heads of 128 columns, S keys, nk = ⌈S/64⌉ blocks: quantized k is int8 [H,nk,64,128]; quantized v is
fp8 [H,nk,128,64] (transposed: FP8 tensor cores read their second operand along keys) or fp16 [H,nk,64,128]. Every tile
is contiguous and zero after the last key, so that the loop over blocks needs neither masks nor strides.
Rows of inputs are addressed by int64, because L·E passes 2^31.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import triton
import triton.language as tl

from plugins.errors import UserError
from plugins.expr import Dim, ceil_div
from plugins.plan_builder import Buffer, Launch, LaunchPlan

HEAD = tl.constexpr(128)
BLOCK_Q = tl.constexpr(128)
BLOCK_K = tl.constexpr(64)
QUANT_MAX = tl.constexpr(448.0)  # largest e4m3; v is scaled to it per channel, in fp16 too, so that no bf16 v overflows
P_SHIFT = tl.constexpr(8.807354922057604)  # log2(448): fp8 probabilities use e4m3's whole range
LOG2E = tl.constexpr(1.4426950408889634)
SCORE_SCALE = tl.constexpr(1.4426950408889634 / 128**0.5)  # log2(e)/√d: softmax runs on exp2
MAGIC = tl.constexpr(12582912.0)  # 1.5·2^23: an fp32 next to it is an integer in its low mantissa bits
MAGIC_BITS = tl.constexpr(0x4B400000)


@triton.jit
def round_to_int8(x):
    """fp32 within ±127.5 → int8, half to even; no libdevice, so that the interpreter runs it too."""
    return (x + MAGIC).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def int_to_float(x):
    """int32 → fp32, exact for |x| < 2^22 (128 products of ±127 are 2.1e6): two full-rate adds, not a conversion."""
    return (x + MAGIC_BITS).to(tl.float32, bitcast=True) - MAGIC


@triton.jit
def scalar(x):
    """x as an int32 value: the interpreter's loop counters are Python ints, which break in inlined functions."""
    return tl.program_id(0) * 0 + x


@triton.jit
def int64(x):
    """x as an int64 value."""
    return scalar(x).to(tl.int64)


@triton.jit
def feature_map(x):
    """φ: softmax over the 128 channels. x fp32 [rows,128]."""
    e = tl.exp2((x - tl.max(x, 1)[:, None]) * LOG2E)
    return e * (1.0 / tl.sum(e, 1))[:, None]


@triton.jit
def load_rows(x, block, head, length, BLOCK: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr):
    """Rows block·BLOCK… of head's 128 columns (after OFFSET columns) of x [length, STRIDE]; zeros past the end."""
    rows = tl.arange(0, BLOCK)
    pointers = x + int64(block) * BLOCK * STRIDE + head * HEAD + OFFSET
    pointers += rows[:, None] * STRIDE + tl.arange(0, HEAD)[None, :]
    return tl.load(pointers, mask=(block * BLOCK + rows < length)[:, None], other=0.0)


@triton.jit
def kv_pass(
    k, v, pool, ksum, vmax, kv, z, S, D: tl.constexpr, E: tl.constexpr, LINEAR: tl.constexpr, EXACT: tl.constexpr
):
    """Partial sums over one split of the keys of one head. Grid (splits, H).

    ksum = Σk, vmax = max|v| fp32 [H,splits,128]; with LINEAR also pool = Σ of each block's k [H,nk,128],
    kv = φ(k)ᵀv [H,splits,128,128], z = Σφ(k) [H,splits,128], all fp32. EXACT: fp32 dots, for the interpreter.
    """
    split, head = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, HEAD)
    nk = tl.cdiv(S, BLOCK_K)
    share = tl.cdiv(nk, tl.num_programs(0))
    k_total = tl.zeros([HEAD], tl.float32)
    v_amax = tl.zeros([HEAD], tl.float32)
    z_total = tl.zeros([HEAD], tl.float32)
    kv_total = tl.zeros([HEAD, HEAD], tl.float32)
    for i in range(split * share, tl.minimum(split * share + share, nk)):
        block = scalar(i)
        keys = load_rows(k, block, head, S, BLOCK_K, D, 0).to(tl.float32)
        values = load_rows(v, block, head, S, BLOCK_K, E, E - D)
        block_sum = tl.sum(keys, 0)
        k_total += block_sum
        v_amax = tl.maximum(v_amax, tl.max(tl.abs(values.to(tl.float32)), 0))
        if LINEAR:
            tl.store(pool + (head * nk + block) * HEAD + c, block_sum)
            real = block * BLOCK_K + tl.arange(0, BLOCK_K) < S
            phi = tl.where(real[:, None], feature_map(keys), 0.0)
            z_total += tl.sum(phi, 0)
            if EXACT:
                kv_total = tl.dot(tl.trans(phi), values.to(tl.float32), kv_total, input_precision="ieee")
            else:
                kv_total = tl.dot(tl.trans(phi.to(tl.bfloat16)), values, kv_total)
    part = head * tl.num_programs(0) + split
    tl.store(ksum + part * HEAD + c, k_total)
    tl.store(vmax + part * HEAD + c, v_amax)
    if LINEAR:
        tl.store(z + part * HEAD + c, z_total)
        tl.store(kv + part * HEAD * HEAD + c[:, None] * HEAD + c[None, :], kv_total)


@triton.jit
def kv_reduce(
    ksum, vmax, kv, z, weight, kmean, vscale, kv_proj, z_total, S, splits, ROWS: tl.constexpr, LINEAR: tl.constexpr
):
    """Add the splits, ROWS of the 128 channels a program. Grid (128/ROWS, H).

    kmean, vscale, z_total fp32 [H,128]; kv_proj = KV·weightᵀ bf16 [H,128,128] (proj_l folded into KV).
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
    tl.store(vscale + head * HEAD + rows, tl.maximum(v_amax, 1e-8) / QUANT_MAX)
    if LINEAR:
        weight_t = tl.load(weight + c[None, :] * HEAD + c[:, None])
        projected = tl.dot(kv_sum, weight_t, input_precision="tf32x3")  # 22 bits, and then rounded to bf16
        tl.store(z_total + head * HEAD + rows, z_sum)
        tl.store(kv_proj + (head * HEAD + rows[:, None]) * HEAD + c[None, :], projected.to(tl.bfloat16))


@triton.jit
def kv_quantize(k, v, kmean, vscale, kq, kscale, vq, S, D: tl.constexpr, E: tl.constexpr, PV: tl.constexpr):
    """k − kmean to int8 with a scale per block, v to PV with a scale per channel. Grid (nk, H)."""
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
    tl.store(kq + tile.to(tl.int64) * (BLOCK_K * HEAD) + out, round_to_int8(keys * (127.0 / amax)))
    values = load_rows(v, block, head, S, BLOCK_K, E, E - D).to(tl.float32)
    values = values * (1.0 / tl.load(vscale + head * HEAD + c))[None, :]
    vq += tile.to(tl.int64) * (BLOCK_K * HEAD)
    if PV == "fp8":
        values = tl.minimum(tl.maximum(values, -QUANT_MAX), QUANT_MAX).to(tl.float8e4nv)
        tl.store(vq + c[:, None] * BLOCK_K + rows[None, :], tl.trans(values))
    else:
        tl.store(vq + out, values.to(tl.float16))


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
    EXACT: tl.constexpr,
):
    """(q·kᵀ before scaling fp32 [128,64], its scale for exp2) of one key block; keys past S give −inf."""
    if PV == "bf16":
        if SHORT:  # noqa: SIM108 (Triton compiles one branch)
            keys = load_rows(k, block, head, S, BLOCK_K, D, 0)
        else:
            keys = load_full(k, block, head, BLOCK_K, D, 0)
        if EXACT:
            s = tl.dot(q.to(tl.float32), tl.trans(keys.to(tl.float32)), input_precision="ieee")
        else:
            s = tl.dot(q, tl.trans(keys))
        scale = q_scale
    else:
        keys = load_tile(k, head * nk + block, BLOCK_K, HEAD)
        scale = q_scale * tl.load(k_scale + head * nk + block)
        s = int_to_float(tl.dot(q, tl.trans(keys), out_dtype=tl.int32))
    if SHORT:
        s = tl.where((block * BLOCK_K + tl.arange(0, BLOCK_K) < S)[None, :], s, float("-inf"))
    return s, scale


@triton.jit
def value_block(
    p,
    acc,
    alpha,
    v,
    head,
    block,
    nk,
    S,
    D: tl.constexpr,
    E: tl.constexpr,
    PV: tl.constexpr,
    SHORT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """acc·alpha + p·v of one key block, fp32 [128,128]."""
    # No early returns: Triton refuses them in an inlined function.
    if PV == "fp8":
        values = load_tile(v, head * nk + block, HEAD, BLOCK_K)
        # Tensor cores add FP8 products in 22 bits or fewer (sm_89, sm_90): sum blocks outside them, in true fp32.
        product = tl.dot(p.to(tl.float8e4nv), tl.trans(values))
        result = tl.fma(acc, tl.broadcast_to(alpha[:, None], acc.shape), product)
    elif PV == "fp16":
        values = load_tile(v, head * nk + block, BLOCK_K, HEAD)
        result = tl.dot(p.to(tl.float16), values, acc * alpha[:, None])
    else:
        if SHORT:
            values = load_rows(v, block, head, S, BLOCK_K, E, E - D)
        else:
            values = load_full(v, block, head, BLOCK_K, E, E - D)
        if EXACT:
            result = tl.dot(p, values.to(tl.float32), acc * alpha[:, None], input_precision="ieee")
        else:
            result = tl.dot(p.to(tl.bfloat16), values, acc * alpha[:, None])
    return result


@triton.jit
def attend(
    q, k, v, k_scale, q_scale, acc, total, best, head, block, nk, S,
    D: tl.constexpr, E: tl.constexpr, PV: tl.constexpr, SHORT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One step of online softmax (FlashAttention-2, algorithm 1) over one key block; ``best`` is in exp2 units."""
    s, scale = score_block(q, k, k_scale, q_scale, head, block, nk, S, D, PV, SHORT, EXACT)
    new_best = tl.maximum(best, tl.max(s, 1) * scale)
    shift = new_best - P_SHIFT if PV == "fp8" else new_best
    p = tl.exp2(s * scale - shift[:, None])
    alpha = tl.exp2(best - new_best)
    total = total * alpha + tl.sum(p, 1)
    acc = value_block(p, acc, alpha, v, head, block, nk, S, D, E, PV, SHORT, EXACT)
    return acc, total, new_best


@triton.jit
def add_linear_branch(acc, q, kv_proj, z, bias, q_block, head, L, D: tl.constexpr, EXACT: tl.constexpr):
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
        if EXACT:
            acc = tl.dot(phi, matrix.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(phi.to(tl.bfloat16), matrix, acc)
    return acc


@triton.jit
def flash_attention(
    q, k, v, o, k_scale, v_scale, lut, kv_proj, z, bias, L, S, kept,
    D: tl.constexpr, E: tl.constexpr, PV: tl.constexpr, SPARSE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Attention of one block of 128 queries of one head. Grid (⌈L/128⌉, H): a head's programs run together, its k and
    v stay in L2.

    q, o bf16 [L,D]. PV = "bf16": k, v are the inputs [S,D], [S,E]. Else k int8, v fp8 or fp16, in this file's layouts,
    k_scale fp32 [H,nk], v_scale fp32 [H,128]; q is quantized here with one scale a block. SPARSE: only the ``kept``
    key blocks in lut int32 [H,nq,kept], ascending, and the linear branch is added. EXACT: fp32 dots, interpreter only.
    """
    q_block, head = tl.program_id(0), tl.program_id(1)
    nk = tl.cdiv(S, BLOCK_K)
    c = tl.arange(0, HEAD)
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
    acc = tl.zeros([BLOCK_Q, HEAD], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    best = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    for i in range(0, full):
        block = tl.load(lut + i) if SPARSE else scalar(i)
        acc, total, best = attend(
            queries, k, v, k_scale, q_scale, acc, total, best, head, block, nk, S, D, E, PV, False, EXACT
        )
    # The short last block, if kept: a second loop of at most one step keeps masks out of the first.
    for _ in tl.range(full, count, num_stages=1):
        acc, total, best = attend(
            queries, k, v, k_scale, q_scale, acc, total, best, head, last, nk, S, D, E, PV, True, EXACT
        )
    acc = acc * (1.0 / total)[:, None]
    if PV != "bf16":
        acc = acc * tl.load(v_scale + head * HEAD + c)[None, :]
    if SPARSE:
        acc = add_linear_branch(acc, q, kv_proj, z, bias, q_block, head, L, D, EXACT)
    rows = tl.arange(0, BLOCK_Q)
    o += (q_block * BLOCK_Q).to(tl.int64) * D + head * HEAD
    tl.store(o + rows[:, None] * D + c[None, :], acc.to(tl.bfloat16), mask=(q_block * BLOCK_Q + rows < L)[:, None])


@dataclass(frozen=True)
class AttentionConfig:
    """How flash_attention is compiled. ``pv`` is the dtype of P·V: "bf16" (and bf16 q·kᵀ), "fp16" or "fp8"."""

    pv: str
    num_warps: int
    num_stages: int


def legal(config: AttentionConfig, sm: int) -> str | None:
    """Why a config cannot run on an SM, or None."""
    if config.pv not in ("bf16", "fp16", "fp8"):
        return f"pv is bf16, fp16 or fp8, not {config.pv}"
    if config.pv == "fp8" and sm < 89:
        return f"sm_{sm} has no FP8 tensor cores"
    if config.num_warps not in (4, 8):
        return f"num_warps is 4 or 8, not {config.num_warps}"
    tile_bytes = 64 * 128 * {"bf16": 4, "fp16": 3, "fp8": 2}[config.pv]
    q_bytes = 128 * 128 * (2 if config.pv == "bf16" else 1)
    limit = (99 if sm in (86, 89, 120) else 163) * 1024
    need = config.num_stages * tile_bytes + q_bytes
    return f"needs {need} bytes of shared memory, sm_{sm} has {limit}" if need > limit else None


def attention_config(precision: str, sm: int) -> AttentionConfig:
    """The config for an attribute value and SM. Raises UserError on an unknown precision."""
    if precision not in ("int8", "bf16"):
        raise UserError("unknown attention precision", expected="int8 or bf16", got=precision)
    if precision == "bf16":
        return AttentionConfig("bf16", num_warps=8, num_stages=2)
    return AttentionConfig("fp8" if sm >= 89 else "fp16", num_warps=8, num_stages=3)


def check_widths(d: Dim, e: Dim) -> int:
    """The number of heads. Raises UserError where D or E is not static or not a fitting multiple of 128."""
    if not isinstance(d, int) or not isinstance(e, int) or d % 128 or e % 8 or not 0 < d <= e:
        raise UserError("attention needs static widths", expected="D a multiple of 128, E ≥ D", got=f"D={d}, E={e}")
    return d // 128


def statistics_launches(
    s: Dim, d: int, e: int, linear: Mapping[str, str] | None, exact: bool
) -> tuple[list[Buffer], list[Launch]]:
    """kv_pass and kv_reduce. ``linear`` names proj_weight's tensor under "weight" if the linear branch is wanted."""
    heads = d // 128
    splits = min(64, 640 // heads + 1)  # about five programs an SM
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
        {"D": d, "E": e, "EXACT": exact} | flags | pick(absent, first),
        num_warps=8,
        num_stages=2,
    )
    add = Launch(
        kv_reduce,
        (8, heads, 1),
        {"kmean": "kmean", "vscale": "vscale", "splits": splits} | shared | pick(optional, second),
        {"ROWS": 16} | flags | pick(absent, second),
        num_warps=8,
    )
    return buffers, [run, add]


def quantize_launches(s: Dim, d: int, e: int, pv: str) -> tuple[list[Buffer], list[Launch]]:
    """kv_quantize and its buffers."""
    heads, nk = d // 128, ceil_div(s, 64)
    buffers = [
        Buffer("kq", "int8", (heads, nk, 64, 128)),
        Buffer("kscale", "fp32", (heads, nk)),
        Buffer("vq", pv, (heads, nk, 64, 128)),
    ]
    args = {name: name for name in ("k", "v", "kmean", "vscale", "kq", "kscale", "vq")}
    return buffers, [Launch(kv_quantize, (nk, heads, 1), args | {"S": s}, {"D": d, "E": e, "PV": pv})]


def attention_launch(
    length: Dim, s: Dim, d: int, e: int, config: AttentionConfig, kept: Dim | None, exact: bool
) -> Launch:
    """flash_attention; ``kept`` is the number of kept key blocks, or None for dense attention."""
    quantized = config.pv != "bf16"
    args = {"q": "q", "o": "o", "k": "kq" if quantized else "k", "v": "vq" if quantized else "v", "L": length, "S": s}
    optional = {"k_scale": "kscale", "v_scale": "vscale"} if quantized else {}
    if kept is not None:
        optional |= {"lut": "lut", "kv_proj": "kv_proj", "z": "z_total", "bias": "proj_bias", "kept": kept}
    names = ("k_scale", "v_scale", "lut", "kv_proj", "z", "bias", "kept")
    absent = {name: None for name in names if name not in optional}
    constants = {"D": d, "E": e, "PV": config.pv, "SPARSE": kept is not None, "EXACT": exact}
    grid = (ceil_div(length, 128), d // 128, 1)
    # Loads through lut take two loads in a row: Triton then needs two more stages to hold as many blocks in flight.
    stages = config.num_stages + (2 if kept is not None and quantized else 0)
    return Launch(flash_attention, grid, args | optional, constants | absent, config.num_warps, stages)


def launch_plan(
    dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int, *, exact: bool = False
) -> LaunchPlan:
    """SageAttention's plan. ``exact`` (interpreter tests only): fp32 instead of bf16 dots."""
    length, s, d, e = (dims[name] for name in ("L", "S", "D", "E"))
    check_widths(d, e)
    config = attention_config(str(attributes["precision"]), sm)
    buffers: list[Buffer] = []
    launches: list[Launch] = []
    if config.pv != "bf16":
        for more, steps in (statistics_launches(s, d, e, None, exact), quantize_launches(s, d, e, config.pv)):
            buffers += more
            launches += steps
    launches.append(attention_launch(length, s, d, e, config, None, exact))
    return LaunchPlan(tuple(buffers), tuple(launches))
