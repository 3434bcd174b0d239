"""The VAE's layers on tensors [1, C, T, H, W], and the tape of caches that makes chunks equal to the whole video.

A causal convolution looks two frames back. Its cache is the last two frames of its input; before the first frame they
are zeros, so a first chunk, which is one frame, needs only the last tap of the kernel. Products and residuals are in
the weights' dtype; norms and softmax in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.networks.vae.spec import Attention, Layer, Resample, Residual

Weights = Mapping[str, Tensor]
_TINY = 1e-12  # the floor of a norm's length, as in the published code


class Tape:
    """The caches of one chunk, taken by name from the chunk before (None: this is the first) and kept for the next.

    What moves tensors about is a method, so that another memory format can do it its own way: ``channels_last``.
    """

    def __init__(self, before: Mapping[str, Tensor] | None) -> None:
        self.before = before
        self.kept: dict[str, Tensor] = {}

    @property
    def first(self) -> bool:
        return self.before is None

    def keep(self, name: str, x: Tensor, frames: int) -> None:
        """The last frames, as a copy: a view would keep all of x in memory."""
        self.kept[name] = x[:, :, -frames:].clone()

    def conv3d(self, x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return F.conv3d(x, weight, bias, **options)

    def convolve(self, x: Tensor, weights: Weights, name: str) -> Tensor:
        """A 3×3×3 convolution, causal in time and same-sized in space."""
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if self.before is None:
            self.kept[name] = torch.cat((torch.zeros_like(x), x), 2)
            return F.conv2d(x.squeeze(2), weight[:, :, 2], bias, padding=1).unsqueeze(2)
        joined = torch.cat((self.before[name], x), 2)
        self.keep(name, joined, 2)
        return self.conv3d(joined, weight, bias, padding=(0, 1, 1))

    def norm_convolve(self, x: Tensor, gamma: Tensor, weights: Weights, name: str) -> Tensor:
        """``convolve`` of silu(norm(x))."""
        return self.convolve(norm_silu(x, gamma), weights, name)

    def norm_convolve_onto(
        self, beside: Callable[[], Tensor], x: Tensor, gamma: Tensor, weights: Weights, name: str
    ) -> Tensor:
        """``norm_convolve`` plus what ``beside`` makes."""
        return self.norm_convolve(x, gamma, weights, name) + beside()

    def convolve_time(self, x: Tensor, weights: Weights, name: str, *, stride: int) -> Tensor:
        """A 3×1×1 convolution that changes the number of frames; it has not run on the first frame, nor kept it."""
        if self.before is None:
            raise ValueError(f"{name}: the first frame does not pass through time convolutions")
        joined = torch.cat((self.before[name], x), 2)
        self.keep(name, joined, self.before[name].shape[2])
        return self.conv3d(joined, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=(stride, 1, 1))

    def by_frame(self, x: Tensor, weights: Weights, name: str, *, up: bool) -> Tensor:
        """A 3×3 convolution of each frame: after nearest ×2, or of stride 2, padded right and below."""
        weight, bias = weights[f"{name}.weight"].unsqueeze(2), weights[f"{name}.bias"]
        if up:
            return F.conv3d(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0)), weight, bias, padding=(0, 1, 1))
        return F.conv3d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=(1, 2, 2))

    def unfolded(self, x: Tensor) -> Tensor:
        """[1, C, 2t, h, w] of [1, 2C, t, h, w]: each frame's channels hold two frames."""
        _, c, t, h, w = x.shape
        return x.reshape(1, 2, c // 2, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(1, c // 2, 2 * t, h, w)


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """x / ‖x‖ · √C · gamma over the channels of each position, in fp32; gamma's shape ends in ones."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(_TINY)
    scale = gamma.float().reshape(1, -1, 1, 1, 1) * x.shape[1] ** 0.5
    return (x / length * scale).to(x.dtype)  # x / length is fp32: no copy of x in fp32 is needed before


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(rms_norm(x, gamma))


def pointwise(x: Tensor, weights: Weights, name: str) -> Tensor:
    """A 1×1×1 convolution; Wan stores some of them as Conv2d, some as Conv3d."""
    weight = weights[f"{name}.weight"]
    return F.conv3d(x, weight.reshape(*weight.shape[:2], 1, 1, 1), weights[f"{name}.bias"])


def residual(x: Tensor, weights: Weights, layer: Residual, tape: Tape) -> Tensor:
    """x (or its shortcut) + conv(silu(norm(conv(silu(norm(x))))))."""
    name = f"{layer.name}.residual"
    y = tape.norm_convolve(x, weights[f"{name}.0.gamma"], weights, f"{name}.2")

    def shortcut() -> Tensor:
        return pointwise(x, weights, f"{layer.name}.shortcut") if layer.c_in != layer.c_out else x

    return tape.norm_convolve_onto(shortcut, y, weights[f"{name}.3.gamma"], weights, f"{name}.6")


def attention(x: Tensor, weights: Weights, layer: Attention) -> Tensor:
    """x + proj(softmax(q·kᵀ/√C)·v) over the positions of each frame."""
    _, c, t, h, w = x.shape
    y = pointwise(rms_norm(x, weights[f"{layer.name}.norm.gamma"]), weights, f"{layer.name}.to_qkv")
    q, k, v = y.squeeze(0).permute(1, 2, 3, 0).reshape(t, h * w, 3 * c).split(c, 2)
    # The scores are the largest tensor of the latents' half: no copy of them in fp32 before the softmax.
    y = ((q * c**-0.5) @ k.transpose(1, 2)).softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    y = y.reshape(t, h, w, c).permute(3, 0, 1, 2).unsqueeze(0)
    return x + pointwise(y, weights, f"{layer.name}.proj")


def upsample(x: Tensor, weights: Weights, layer: Resample, tape: Tape) -> Tensor:
    """Twice the frames, except the first, through a time convolution; then nearest ×2 in space and a convolution."""
    name = f"{layer.name}.time_conv"
    if layer.temporal and tape.first:
        tape.kept[name] = torch.zeros_like(x).expand(-1, -1, 2, -1, -1)
    elif layer.temporal:
        x = tape.unfolded(tape.convolve_time(x, weights, name, stride=1))
    return tape.by_frame(x, weights, f"{layer.name}.resample.1", up=True)


def downsample(x: Tensor, weights: Weights, layer: Resample, tape: Tape) -> Tensor:
    """Half the size by a convolution of stride 2; then half the frames, except the first."""
    x = tape.by_frame(x, weights, f"{layer.name}.resample.1", up=False)
    name = f"{layer.name}.time_conv"
    if layer.temporal and tape.first:
        tape.kept[name] = x
    elif layer.temporal:
        x = tape.convolve_time(x, weights, name, stride=2)
    return x


def run_layer(x: Tensor, weights: Weights, layer: Layer, tape: Tape) -> Tensor:
    """Any layer of the table."""
    if isinstance(layer, Residual):
        return residual(x, weights, layer, tape)
    if isinstance(layer, Attention):
        return attention(x, weights, layer)
    return (upsample if layer.direction == "up" else downsample)(x, weights, layer, tape)
