"""Oracle of block-128 INT8 quantization (semantics.md, W8A8 block-128)."""

from __future__ import annotations

import torch


def reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [M, K] and fp32 [⌈M/128⌉, ⌈K/128⌉] of x [M, K], any float dtype.

    amax over a block's real elements, at least 1e-8; scale = amax/128; q = round-half-even(x·(128/amax)), saturated.
    """
    m, k = x.shape
    padded = torch.nn.functional.pad(x.float(), (0, -k % 128, 0, -m % 128))
    blocks = padded.view(padded.shape[0] // 128, 128, -1, 128)
    amax = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-8)
    q = (blocks * (128.0 / amax)[:, None, :, None]).round().clamp(-128, 127).to(torch.int8)
    return q.view_as(padded)[:m, :k].contiguous(), amax / 128.0
