"""The layers on sm_90: frames whose channels lie side by side, and convolutions by ``hopper_conv``.

It reads the cache where it lies, so nothing is joined; upsampling is part of its convolution, the sum of a residual
too. cuDNN, which has no kernel of sm_90's for 96 channels, keeps what has a stride and what is pointwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exporter.networks.vae.channels_last import FORMAT, ChannelsLast
from exporter.networks.vae.hopper_conv import Packed, convolve, packed, packed_upsampling
from exporter.networks.vae.layers import Tape, Weights
from exporter.networks.vae.norm_kernel import norm_silu_into

_SM = 90


def tape_for(sm: int | None) -> type[Tape]:
    """How the torch backend runs the VAE's layers on an SM; None is the CPU."""
    if sm is None:
        return Tape
    return HopperTape if sm == _SM else ChannelsLast


class HopperTape(ChannelsLast):
    """The same caches, in the same memory format."""

    def convolve(self, x: Tensor, weights: Weights, name: str) -> Tensor:
        self._keep_last(x, name)
        return self._convolved(x, weights, name)

    def norm_convolve(self, x: Tensor, gamma: Tensor, weights: Weights, name: str) -> Tensor:
        return self._convolved(self._normed(x, gamma, name), weights, name)

    def norm_convolve_onto(
        self, beside: Callable[[], Tensor], x: Tensor, gamma: Tensor, weights: Weights, name: str
    ) -> Tensor:
        return self._convolved(self._normed(x, gamma, name), weights, name, beside())

    def convolve_time(self, x: Tensor, weights: Weights, name: str, *, stride: int) -> Tensor:
        if stride != 1:
            return super().convolve_time(x, weights, name, stride=stride)
        self._keep_last(x, name)
        return self._convolved(x, weights, name)

    def by_frame(self, x: Tensor, weights: Weights, name: str, *, up: bool) -> Tensor:
        if not up:
            return super().by_frame(x, weights, name, up=up)
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return _run(x, None, packed_upsampling(weight), bias, None)

    def _convolved(self, x: Tensor, weights: Weights, name: str, residual: Tensor | None = None) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if self.before is None:  # frames of zeros: the last tap is all that counts
            return _run(x, None, packed(weight[:, :, -1:]), bias, residual)
        return _run(x, self.before[name], packed(weight), bias, residual)

    def _normed(self, x: Tensor, gamma: Tensor, name: str) -> Tensor:
        normed = torch.empty_like(x, memory_format=FORMAT)
        norm_silu_into(x, gamma, normed, self._cache(x, name))
        return normed

    def _keep_last(self, x: Tensor, name: str) -> None:
        cache = self._cache(x, name)
        cache.copy_(x[:, :, -cache.shape[2] :])

    def _cache(self, x: Tensor, name: str) -> Tensor:
        """Where x's last frames go: the end of a cache of two frames, whose beginning is there already."""
        _, c, t, h, w = x.shape
        if name not in self._into:
            kept = torch.empty((1, c, 2, h, w), dtype=x.dtype, device=x.device, memory_format=FORMAT)
        else:
            kept = self._into[name]
        self.kept[name] = kept
        older = kept[:, :, : max(0, 2 - t)]
        if self.before is None:
            older.zero_()
        elif older.shape[2]:
            older.copy_(self.before[name][:, :, t:])
        return kept[:, :, older.shape[2] :]


def _run(x: Tensor, before: Tensor | None, weight: Packed, bias: Tensor, residual: Tensor | None) -> Tensor:
    """``convolve`` of tensors [1, C, T, H, W]."""
    beside = None if residual is None else _frames(residual)
    out = convolve(_frames(x), None if before is None else _frames(before), weight, bias, beside)
    return out[..., : bias.numel()].permute(3, 0, 1, 2).unsqueeze(0)


def _frames(x: Tensor) -> Tensor:
    """[T, H, W, C], the same memory where channels lie side by side."""
    return x.contiguous(memory_format=FORMAT).squeeze(0).permute(1, 2, 3, 0)
