"""The layers in memory where each position's channels lie side by side: how the torch backend runs the VAE on CUDA.

cuDNN's tensor-core convolutions want that order and copy from any other. Norm, SiLU and the joining with the cache are
one pass, straight into the convolution's input; caches are written where the next chunk reads them. Same function as
the traced one, but for the order of roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.networks.vae.layers import Tape, Weights
from exporter.networks.vae.norm_kernel import norm_silu_into

FORMAT = torch.channels_last_3d
_LANES = 8  # channels come in multiples of these, or cuDNN has no tensor-core kernel


class ChannelsLast(Tape):
    """``into``: name → where the cache for the next chunk is to lie, in this memory format too."""

    def __init__(self, before: Mapping[str, Tensor] | None, into: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(before)
        self._into = into or {}

    def keep(self, name: str, x: Tensor, frames: int) -> None:
        if name not in self._into:
            super().keep(name, x, frames)
            return
        self.kept[name] = self._into[name].copy_(x[:, :, -frames:])

    def conv3d(self, x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        out, taken = -weight.shape[0] % _LANES, -weight.shape[1] % _LANES
        count = weight.shape[0]
        if out or taken:
            weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, taken, 0, out)), F.pad(bias, (0, out))
        if taken:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, taken))
        return F.conv3d(x, weight.contiguous(memory_format=FORMAT), bias, **options)[:, :count]

    def convolve(self, x: Tensor, weights: Weights, name: str) -> Tensor:
        return self._causal(self._joined(x, name, lambda place: place.copy_(x)), weights, name)

    def norm_convolve(self, x: Tensor, gamma: Tensor, weights: Weights, name: str) -> Tensor:
        return self._causal(self._joined(x, name, lambda place: norm_silu_into(x, gamma, place)), weights, name)

    def convolve_time(self, x: Tensor, weights: Weights, name: str, *, stride: int) -> Tensor:
        joined = self._joined(x, name, lambda place: place.copy_(x))
        return self.conv3d(joined, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=(stride, 1, 1))

    def by_frame(self, x: Tensor, weights: Weights, name: str, *, up: bool) -> Tensor:
        """In two dimensions, frames as a batch: the same memory."""
        frames = x.squeeze(0).transpose(0, 1)
        weight = weights[f"{name}.weight"].contiguous(memory_format=torch.channels_last)
        frames = F.interpolate(frames, scale_factor=2.0) if up else F.pad(frames, (0, 1, 0, 1))
        out = F.conv2d(frames, weight, weights[f"{name}.bias"], stride=1 if up else 2, padding=1 if up else 0)
        return out.transpose(0, 1).unsqueeze(0)

    def unfolded(self, x: Tensor) -> Tensor:
        _, c, t, h, w = x.shape
        y = x.permute(0, 2, 3, 4, 1).reshape(t, h, w, 2, c // 2).permute(0, 3, 1, 2, 4).contiguous()
        return y.view(1, 2 * t, h, w, c // 2).permute(0, 4, 1, 2, 3)

    def _joined(self, x: Tensor, name: str, fill: Callable[[Tensor], object]) -> Tensor:
        """The cache, or zeros before the first chunk, and behind it what ``fill`` puts there; its end is kept."""
        _, c, t, h, w = x.shape
        before = None if self.before is None else self.before[name]
        count = 2 if before is None else before.shape[2]
        joined = torch.empty((1, c, count + t, h, w), dtype=x.dtype, device=x.device, memory_format=FORMAT)
        if before is None:
            joined[:, :, :count].zero_()
        else:
            joined[:, :, :count].copy_(before)
        fill(joined[:, :, count:])
        self.keep(name, joined, count)
        return joined

    def _causal(self, joined: Tensor, weights: Weights, name: str) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if self.before is None:  # two frames of zeros: the last tap is all that counts
            joined, weight = joined[:, :, 2:], weight[:, :, 2:]
        return self.conv3d(joined, weight, bias, padding=(0, 1, 1))
