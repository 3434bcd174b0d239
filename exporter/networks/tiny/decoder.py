"""TAEHV's decoder, chunk by chunk: frames are a batch [T, C, H, W], and each memory block hands on its last one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.networks.tiny.spec import Level, TinySpec, convolutions

Weights = Mapping[str, Tensor]
_BOUND = 3.0  # of latents, softly


class Layers:
    """How convolutions are computed; another memory format does it its own way: ``channels_last``."""

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False, add: Tensor | None = None
    ) -> Tensor:
        """A convolution that keeps the size, plus ``add``, then ReLU."""
        y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        y = y if add is None else y + add
        return F.relu(y) if relu else y

    def grown(self, x: Tensor, weight: Tensor, grow: int) -> Tensor:
        """``grow`` frames of each: parts of a pointwise convolution's channels, the earlier frames first."""
        y = self.convolve(x, weight, None)
        return y.reshape(grow * y.shape[0], y.shape[1] // grow, *y.shape[2:])


def decode(
    z: Tensor,
    before: Mapping[str, Tensor] | None,
    weights: Weights,
    spec: TinySpec,
    layers: Layers | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Frames [t, 3, 8H, 8W], 0 black and 1 white, not clamped, of latents [1, 16, n, H, W] as the DiT gives them.

    ``before``: each memory block's last frame from the chunk before, [1, C, h, w], which comes back for the next.
    None is the first chunk: n is 1, the memories are black, and of the four frames only the last is one of the video.
    """
    layers, first = layers or Layers(), before is None
    x = z.squeeze(0).transpose(0, 1).to(next(iter(weights.values())).dtype)
    x = torch.tanh(x / _BOUND) * _BOUND
    x = layers.convolve(x, weights[f"{spec.entry}.weight"], weights[f"{spec.entry}.bias"], relu=True)
    kept: dict[str, Tensor] = {}
    levels = list(spec.levels)
    for level in levels:
        for block in level.blocks:
            kept[block] = x[-1:]
            x = _remembering(x, None if before is None else before[block], block, weights, layers)
        x = _upsampled(x, level, weights, layers, last=level is levels[-1], first=first)
    return layers.convolve(x, weights[f"{spec.exit}.weight"], weights[f"{spec.exit}.bias"]), kept


def _remembering(x: Tensor, memory: Tensor | None, block: str, weights: Weights, layers: Layers) -> Tensor:
    """A memory block on consecutive frames: each beside the one before it, ``memory`` beside the first."""
    first = torch.zeros_like(x[:1]) if memory is None else memory
    past = first if x.shape[0] == 1 else torch.cat([first, x[:-1]])
    one, two, three = ((weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in convolutions(block))
    y = layers.convolve(torch.cat([x, past], 1), *one, relu=True)
    y = layers.convolve(y, *two, relu=True)
    return layers.convolve(y, *three, add=x, relu=True)


def _upsampled(x: Tensor, level: Level, weights: Weights, layers: Layers, *, last: bool, first: bool) -> Tensor:
    """The next level's frames; behind the ``last`` level a ReLU, and in the ``first`` chunk only the last frame.

    TAEHV upsamples first and grows then; a pointwise convolution of a repeated value is the repeated result.
    """
    weight, grow = weights[f"{level.growing}.weight"], level.grow
    if last and first:
        x, weight, grow = x[-1:], weight[-level.width :], 1
    x = F.interpolate(layers.grown(x, weight, grow), scale_factor=2.0)
    return layers.convolve(x, weights[f"{level.convolution}.weight"], None, relu=last)
