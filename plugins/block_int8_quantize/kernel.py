"""Block-128 INT8 quantization in Triton. Bytes: 2·M·K read, M·K written; nothing is read twice."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from plugins.expr import ceil_div
from plugins.plan_builder import Dim, Launch, LaunchPlan
from plugins.triton_math import quantize_tile


@triton.jit
def block_int8_quantize(x_ptr, y_ptr, y_scale_ptr, M, K):
    """One 128×128 block."""
    k_blocks = tl.cdiv(K, 128)
    row_block = tl.program_id(0) // k_blocks
    column_block = tl.program_id(0) % k_blocks
    rows = row_block * 128 + tl.arange(0, 128)
    columns = column_block * 128 + tl.arange(0, 128)
    inside = (rows < M)[:, None] & (columns < K)[None, :]
    offsets = rows.to(tl.int64)[:, None] * K + columns[None, :]
    q, scale = quantize_tile(tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32))
    tl.store(y_ptr + offsets, q, mask=inside)
    tl.store(y_scale_ptr + row_block * k_blocks + column_block, scale)


def launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """Plan of BlockInt8Quantize."""
    m, k = dims["M"], dims["K"]
    args = {"x_ptr": "x", "y_ptr": "y", "y_scale_ptr": "y_scale", "M": m, "K": k}
    launch = Launch(block_int8_quantize, (ceil_div(m, 128) * ceil_div(k, 128), 1, 1), args, num_warps=8)
    return LaunchPlan(buffers=(), launches=(launch,))
