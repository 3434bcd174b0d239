"""The VAE's norm kernel under Triton's interpreter against the plain function: cases(), each a test of its own.

Ragged rows, channels that are no power of two, zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from exporter.networks.vae.layers import norm_silu
from exporter.networks.vae.norm_kernel import launch
from tests.support.interpret import Case, case


def norm(channels: int, frames: int, height: int, width: int) -> None:
    """fp32, written behind two frames that stay as they are; its last frames go to another place too."""
    last = torch.channels_last_3d
    x = torch.randn(1, channels, frames, height, width).contiguous(memory_format=last)
    x[:, :, 0, 0, 0] = 0
    gamma = torch.rand(channels, 1, 1, 1) + 0.5
    joined = torch.full((1, channels, frames + 2, height, width), 7.0).contiguous(memory_format=last)
    end = torch.full((1, channels, min(2, frames), height, width), 7.0).contiguous(memory_format=last)
    launch(x, gamma.reshape(-1), joined[:, :, 2:], end)
    torch.testing.assert_close(joined[:, :, 2:], norm_silu(x, gamma), rtol=1e-5, atol=1e-6)
    assert bool((joined[:, :, :2] == 7).all())
    assert torch.equal(end, joined[:, :, -end.shape[2] :])


def cases() -> Iterator[Case]:
    for shape in ((96, 4, 5, 7), (384, 1, 3, 3), (8, 2, 9, 30)):
        yield case(norm, *shape)
