"""silu(norm(x)) of rows of channels in one pass: read once, written once, where the convolution takes it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from exporter.networks.vae.layers import norm_silu

_TILE = 4096  # elements a program works on
_TINY = tl.constexpr(1e-12)  # the floor of a norm's length, as in ``layers``


@triton.jit  # type: ignore[untyped-decorator]
def norm_silu_kernel(  # type: ignore[no-untyped-def]
    x_ptr, gamma_ptr, out_ptr, end_ptr, rows, end_rows, scale, C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    place = row[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), _TINY)
    y = x / length[:, None] * (gamma * scale)[None, :]
    y = (y * tl.sigmoid(y)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place, y, mask=inside)
    before_end = (rows - end_rows).to(tl.int64)
    tl.store(end_ptr + place - before_end * C, y, mask=inside & (row >= before_end)[:, None])


def launch(x: Tensor, gamma: Tensor, out: Tensor, end: Tensor) -> None:
    """``out`` ← silu(norm(x)), and its last frames to ``end``, which may have none.

    All [1, C, T, H, W], each position's channels side by side, positions in order.
    """
    channels = x.shape[1]
    rows, wide = x.numel() // channels, triton.next_power_of_2(channels)
    block = max(1, _TILE // wide)
    kernel: Any = norm_silu_kernel
    grid = (triton.cdiv(rows, block),)
    sizes = rows, end.numel() // channels, channels**0.5
    kernel[grid](x, gamma, out, end, *sizes, C=channels, WIDE=wide, ROWS=block, num_warps=4)


def norm_silu_into(x: Tensor, gamma: Tensor, out: Tensor, end: Tensor | None = None) -> None:
    """``launch`` on a CUDA device, the plain functions on the CPU; on meta tensors there is nothing to do."""
    if x.is_cuda:
        # cuDNN's results lie so already; nothing is copied.
        x, gamma = x.contiguous(memory_format=torch.channels_last_3d), gamma.reshape(-1).contiguous()
        launch(x, gamma, out, out[:, :, :0] if end is None else end)
    elif not x.is_meta:
        out.copy_(norm_silu(x, gamma))
        if end is not None:
            end.copy_(out[:, :, -end.shape[2] :])
