"""W8A8 block-128 GEMM: INT8 tensor-core products, scaled into an fp32 accumulator every 128 of K.

Operations 2·M·N·K; bytes M·K + N·K + the output. A 128×128 tile has one scale a side and K step, so scaling is one
scalar product and one fused multiply-add an element, and the tile is exactly one quantization block of the output.
This file has the plain Triton kernel, which sm_100 runs, and the plans. hopper.py has sm_90's kernel, bulk_kernel.py
sm_120's, mma_kernel.py the one of sm_80, 86 and 89, which sm_120 runs at the sizes that bulk_kernel.py does not take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import triton
import triton.language as tl

from plugins.block_int8_gemm import bulk_kernel, mma_kernel
from plugins.block_int8_gemm.hopper import block_int8_gemm_hopper
from plugins.configs import config_for
from plugins.expr import ceil_div, minimum
from plugins.plan_builder import Buffer, Dim, Launch, LaunchPlan
from plugins.sms import GEFORCE_SMS, HOPPER_SMS, SHARED_LIMIT
from plugins.triton_math import gelu_tanh, quantize_tile

BLOCK = 128


@dataclass(frozen=True)
class GemmConfig:
    """Launch parameters of one GEMM: pipeline stages, how many row tiles share a weight tile in L2, a tile's sides.

    256 rows: hopper.py's kernel, one program an SM. 256 columns: bulk_kernel.py's, one program an SM. 128 of both: the
    Triton kernel, by ``num_warps`` warps; or mma_kernel.py's where ``early`` is not None: how many of eight slices it
    multiplies before it gives x's tile back. Warps of all but the Triton kernel are fixed, stages of the mma.sync ones.
    """

    num_warps: int
    num_stages: int
    group_m: int = 8
    tile_m: int = 128
    tile_n: int = 128
    early: int | None = None


_MMA = GemmConfig(mma_kernel.WARPS, 2, early=1)
_BULK = GemmConfig(bulk_kernel.WARPS, 2, tile_n=bulk_kernel.TILE_N)
#: Chosen per SM: Hopper runs its own kernel, data-center Blackwell feeds on a deep pipeline.
CONFIGS: Mapping[int, GemmConfig] = {
    80: _MMA,
    86: _MMA,
    89: _MMA,
    90: GemmConfig(4, 4, group_m=8, tile_m=256),
    100: GemmConfig(4, 3),
    120: _BULK,
}
#: SMs whose fastest int8 products are mma.sync's.
MMA_SMS = (80, 86, 89, 120)


def legal(config: GemmConfig, sm: int) -> str | None:
    """Why a config cannot run on an SM, or None."""
    if config.tile_m not in (128, 256):
        return f"tiles of {config.tile_m} rows: there are kernels for 128 and 256"
    if config.tile_m == 256 and sm != 90:
        return f"tiles of 256 rows are sm_90's kernel, not sm_{sm}'s"
    if config.tile_n != BLOCK:
        return _legal_bulk(config, sm)
    if config.early is not None:
        return _legal_mma(config, sm)
    if config.num_warps not in ((4,) if config.tile_m == 256 else (4, 8)):
        return f"{config.num_warps} warps: the tile is cut for {'4' if config.tile_m == 256 else '4 or 8'}"
    # 256 rows: each consumer's outputs pass through 8 KiB a half on their way to memory.
    shared = config.num_stages * (config.tile_m + BLOCK) * BLOCK + (20 * 1024 if config.tile_m == 256 else 0)
    if shared > SHARED_LIMIT[sm] * 1024:
        return f"{config.num_stages} stages need {shared // 1024} KiB of shared memory, sm_{sm} has {SHARED_LIMIT[sm]}"
    return None


def _legal_mma(config: GemmConfig, sm: int) -> str | None:
    if sm not in MMA_SMS or config.tile_m != BLOCK:
        return f"mma_kernel.py's tiles have {BLOCK} rows and are for {MMA_SMS}, not {config.tile_m} for sm_{sm}"
    if (config.num_warps, config.num_stages) != (mma_kernel.WARPS, 2):
        return f"mma_kernel.py is written for {mma_kernel.WARPS} warps and two stages"
    if config.early not in range(8):
        return f"early is {config.early}: of eight slices, at least one comes after x's tile is given back"
    if SHARED_LIMIT[sm] * 1024 < mma_kernel.SHARED:
        return f"48 KiB of shared memory are needed, sm_{sm} has {SHARED_LIMIT[sm]}"
    return None


def _legal_bulk(config: GemmConfig, sm: int) -> str | None:
    if sm != 120 or config.tile_n != bulk_kernel.TILE_N:
        return f"tiles of {config.tile_n} columns: bulk_kernel.py has {bulk_kernel.TILE_N}, for sm_120, not sm_{sm}"
    if replace(config, group_m=_BULK.group_m) != _BULK:
        return f"bulk_kernel.py is written for {_BULK.num_warps} warps, two stages and tiles of {BLOCK} rows"
    if SHARED_LIMIT[sm] * 1024 < bulk_kernel.SHARED:
        return f"{bulk_kernel.SHARED // 1024} KiB of shared memory are needed, sm_{sm} has {SHARED_LIMIT[sm]}"
    return None


def candidates(sm: int) -> Iterator[GemmConfig]:
    """The configs worth measuring on an SM. On sm_90 that is hopper.py's kernel: at the 14B shapes 128 rows gave 915 to
    988 TOPS on the H200, 256 rows 1,041 to 1,136. On sm_120 it is bulk_kernel.py's, 1.09 to 1.23 times mma_kernel.py's
    there; on the other parts of mma_kernel.py that one, 1.8 times the Triton kernel.
    """
    if sm == 120:
        for group_m in (4, 8, 16):
            yield replace(_BULK, group_m=group_m)
        return
    if sm in MMA_SMS:
        for early, group_m in product((0, 1, 2), (4, 8, 16)):
            yield GemmConfig(mma_kernel.WARPS, 2, group_m, early=early)
        return
    tile_m = 256 if sm == 90 else 128
    for num_warps, num_stages, group_m in product((4, 8), (2, 3, 4), (4, 8, 16)):
        config = GemmConfig(num_warps, num_stages, group_m, tile_m)
        if legal(config, sm) is None:
            yield config


@triton.jit
def _tile_of(pid, m_tiles, n_tiles, group_m):
    """Row and column tile of a program: group_m row tiles walk the columns together, to reuse both operands in L2."""
    group = pid // (group_m * n_tiles)
    first = group * group_m
    size = min(m_tiles - first, group_m)
    local = pid % (group_m * n_tiles)
    return first + local % size, local // size


@triton.jit
def block_int8_gemm(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    gate_ptr,
    residual_ptr,
    y_ptr,
    y_scale_ptr,
    M,
    N,
    K,
    group_m,
    EPILOGUE: tl.constexpr,
):
    """One 128×128 tile of y; EPILOGUE is "bias", "gelu" or "residual"."""
    BLOCK: tl.constexpr = 128
    k_blocks, n_blocks = tl.cdiv(K, BLOCK), tl.cdiv(N, BLOCK)
    row_tile, column_tile = _tile_of(tl.program_id(0), tl.cdiv(M, BLOCK), n_blocks, group_m)
    x = tl.make_tensor_descriptor(x_ptr, [M, K], [K, 1], [BLOCK, BLOCK])
    weight = tl.make_tensor_descriptor(weight_ptr, [N, K], [K, 1], [BLOCK, BLOCK])
    x_scale_ptr += row_tile * k_blocks
    weight_scale_ptr += column_tile * k_blocks
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for block in range(k_blocks):
        a = x.load([row_tile * BLOCK, block * BLOCK])
        b = weight.load([column_tile * BLOCK, block * BLOCK])
        scale = tl.load(x_scale_ptr + block) * tl.load(weight_scale_ptr + block)
        acc += tl.dot(a, b.T, out_dtype=tl.int32).to(tl.float32) * scale

    rows = row_tile * BLOCK + tl.arange(0, BLOCK)
    columns = column_tile * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    y = acc + tl.load(bias_ptr + columns, mask=columns < N, other=0.0)[None, :]
    if EPILOGUE == "gelu":
        q, y_scale = quantize_tile(tl.where(inside, gelu_tanh(y), 0.0))
        tl.store(y_ptr + offsets, q, mask=inside)
        tl.store(y_scale_ptr + row_tile * n_blocks + column_tile, y_scale)
    else:
        if EPILOGUE == "residual":
            gate = tl.load(gate_ptr + columns, mask=columns < N, other=0.0)
            y = tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32) + gate[None, :] * y
        tl.store(y_ptr + offsets, y.to(tl.bfloat16), mask=inside)


def _config(sm: int, n: int, k: int, epilogue: str) -> GemmConfig:
    """The table's config, or that of a kernel which takes these sizes. Raises ValueError where it is not legal."""
    config = config_for("block_int8_gemm", sm, {"N": n, "K": k, "epilogue": epilogue}, CONFIGS[sm])
    if (reason := legal(config, sm)) is not None:
        raise ValueError(f"BlockInt8Gemm on sm_{sm}: {reason}")
    if config.tile_n == bulk_kernel.TILE_N and (n % bulk_kernel.UNIT_N != 0 or k <= BLOCK):
        config = _MMA
    if config.early is not None and k <= BLOCK:  # of a single K block Triton 3.7 loses the copies' alignment
        config = replace(config, early=None)
    return config


def _plan(dims: Mapping[str, Dim], sm: int, epilogue: str) -> LaunchPlan:
    m, n, k = dims["M"], dims["N"], dims["K"]
    if k % 16 != 0:
        raise ValueError(f"BlockInt8Gemm: K must be a multiple of 16 (rows aligned for bulk copies), got {k}")
    config = _config(sm, n, k, epilogue)
    args: dict[str, str | Dim] = {
        "x_ptr": "x",
        "x_scale_ptr": "x_scale",
        "weight_ptr": "weight",
        "weight_scale_ptr": "weight_scale",
        "bias_ptr": "bias",
        "y_ptr": "y",
        "M": m,
        "N": n,
        "K": k,
        "group_m": config.group_m,
    }
    args |= {"y_scale_ptr": "y_scale"} if epilogue == "gelu" else {}
    args |= {"gate_ptr": "gate", "residual_ptr": "residual"} if epilogue == "residual" else {}
    constants: dict[str, Any] = {"EPILOGUE": epilogue}
    constants |= {name: None for name in ("gate_ptr", "residual_ptr", "y_scale_ptr") if name not in args}
    tiles = ceil_div(m, config.tile_m) * ceil_div(n, config.tile_n)
    if config.tile_m == 256:
        constants["STAGES"] = config.num_stages
        if epilogue == "residual":  # whose rows' addresses would spill
            constants["N"] = args.pop("N")
        programs = minimum(tiles, HOPPER_SMS)
        return LaunchPlan((), (Launch(block_int8_gemm_hopper, (programs, 1, 1), args, constants, config.num_warps),))
    if config.tile_n == bulk_kernel.TILE_N:
        return _bulk_plan(args, constants, tiles)
    kernel: Any = block_int8_gemm
    if config.early is not None:
        kernel = mma_kernel.block_int8_gemm_mma
        # What is quantized again is held to exact sums: a block's scale is its largest element.
        constants |= {"K": args.pop("K"), "RAGGED_N": n % BLOCK != 0}  # its rows' addresses are one and constants
        constants |= {"EARLY": config.early, "EXACT": epilogue == "gelu"}
    launch = Launch(kernel, (tiles, 1, 1), args, constants, config.num_warps, config.num_stages)
    return LaunchPlan(buffers=(), launches=(launch,))


def _bulk_plan(args: Mapping[str, str | Dim], constants: Mapping[str, Any], tiles: Dim) -> LaunchPlan:
    """A persistent grid whose programs each write their tensor maps into a buffer."""
    programs = minimum(tiles, GEFORCE_SMS)
    launch = Launch(
        bulk_kernel.block_int8_gemm_bulk,
        (programs, 1, 1),
        {**args, "maps_ptr": "maps"},
        {**constants, "EXACT": constants["EPILOGUE"] == "gelu"},
        bulk_kernel.WARPS,
        oldest_sm=90,
    )
    return LaunchPlan((Buffer("maps", "int8", (programs, bulk_kernel.MAP_BYTES)),), (launch,))


def launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of BlockInt8Gemm."""
    return _plan(dims, sm, "bias")


def gelu_launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of BlockInt8GemmGelu."""
    return _plan(dims, sm, "gelu")


def residual_launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of BlockInt8GemmResidual."""
    return _plan(dims, sm, "residual")
