"""Pixels → bytes, in the graph: a quarter of the bytes to copy, and nothing for the host to compute."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Frames uint8 [t, h, w, 3] of pixels fp32 [1, 3, t, h, w], −1 black and 1 white, and their sum, fp32 [1].

    A clamp may hide NaN and a byte always does; in the sum NaN and infinity show.
    """
    scaled = ((pixels[0].clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(1, 2, 3, 0).to(torch.uint8), pixels.sum().reshape(1)
