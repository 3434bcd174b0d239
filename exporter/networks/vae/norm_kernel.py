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
def norm_silu_kernel(x_ptr, gamma_ptr, out_ptr, rows, scale, C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    place = row[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), _TINY)
    y = x / length[:, None] * (gamma * scale)[None, :]
    tl.store(out_ptr + place, (y * tl.sigmoid(y)).to(out_ptr.dtype.element_ty), mask=inside)


def launch(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """``out`` ← silu(norm(x)); both [1, C, T, H, W], each position's channels side by side, positions in order."""
    channels = x.shape[1]
    rows, wide = x.numel() // channels, triton.next_power_of_2(channels)
    block = max(1, _TILE // wide)
    kernel: Any = norm_silu_kernel
    grid = (triton.cdiv(rows, block),)
    kernel[grid](x, gamma, out, rows, channels**0.5, C=channels, WIDE=wide, ROWS=block, num_warps=4)


def norm_silu_into(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """``launch`` on a CUDA device, the plain functions on the CPU; on meta tensors there is nothing to do."""
    if x.is_cuda:
        # cuDNN's results lie so already; nothing is copied.
        launch(x.contiguous(memory_format=torch.channels_last_3d), gamma.reshape(-1).contiguous(), out)
    elif not x.is_meta:
        out.copy_(norm_silu(x, gamma))
