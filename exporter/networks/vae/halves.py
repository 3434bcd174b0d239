"""The VAE cut where its resolution changes: what runs at the latents' resolution, and what runs above it.

Attention looks at a whole frame, so it cannot be tiled; it runs where a frame is small. All above is convolutions
with a finite reach, so that tiles with a margin as wide as that reach give exactly the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from exporter.networks.vae.layers import Tape, Weights, pointwise, run_layer
from exporter.networks.vae.spec import PIXELS, Layer, Resample, Residual, VaeSpec, down_layers, middle_layers, up_layers

Half = Literal["decode_latent", "decode_pixels", "encode_pixels", "encode_latent"]
HALVES: tuple[Half, ...] = ("decode_latent", "decode_pixels", "encode_pixels", "encode_latent")


@dataclass(frozen=True)
class Cache:
    """A cache [1, channels, frames, scale·H, scale·W], with H and W those of the latents."""

    channels: int
    frames: int
    scale: int


@dataclass(frozen=True)
class Conv:
    """A convolution outside the layers: name and channels."""

    name: str
    c_in: int
    c_out: int


@dataclass(frozen=True)
class Parts:
    """One half in order: a pointwise convolution, a causal one, layers, norm-SiLU-convolution, a pointwise one."""

    before: Conv | None
    head: Conv | None
    layers: tuple[Layer, ...]
    tail: Conv | None
    after: Conv | None
    scale: int  # of the half's input


def parts_of(spec: VaeSpec, half: Half) -> Parts:
    """What a half is made of."""
    z, top = spec.latent, spec.top
    if half.startswith("decode"):
        layers = up_layers(spec)
        cut = next(i for i, layer in enumerate(layers) if isinstance(layer, Resample))
        if half == "decode_latent":
            entry = Conv("conv2", z, z), Conv("decoder.conv1", z, top)
            return Parts(*entry, middle_layers(spec, "decoder") + layers[:cut], None, None, 1)
        return Parts(None, None, layers[cut:], Conv("decoder.head.2", spec.base, PIXELS), None, 1)
    layers = down_layers(spec)
    cut = 1 + max(i for i, layer in enumerate(layers) if isinstance(layer, Resample))
    if half == "encode_pixels":
        return Parts(None, Conv("encoder.conv1", PIXELS, spec.base), layers[:cut], None, None, spec.factor)
    tail, after = Conv("encoder.head.2", top, 2 * z), Conv("conv1", 2 * z, 2 * z)
    return Parts(None, None, layers[cut:] + middle_layers(spec, "encoder"), tail, after, 1)


def caches(spec: VaeSpec, half: Half) -> dict[str, Cache]:
    """The half's caches by the name of their convolution, in the order of use."""
    parts = parts_of(spec, half)
    scale = parts.scale
    found: dict[str, Cache] = {}
    if parts.head is not None:
        found[parts.head.name] = Cache(parts.head.c_in, 2, scale)
    for layer in parts.layers:
        if isinstance(layer, Residual):
            found[f"{layer.name}.residual.2"] = Cache(layer.c_in, 2, scale)
            found[f"{layer.name}.residual.6"] = Cache(layer.c_out, 2, scale)
        elif isinstance(layer, Resample):
            after = scale * 2 if layer.direction == "up" else scale // 2
            if layer.temporal:
                up = layer.direction == "up"
                found[f"{layer.name}.time_conv"] = Cache(layer.channels, 2 if up else 1, scale if up else after)
            scale = after
    if parts.tail is not None:
        found[parts.tail.name] = Cache(parts.tail.c_in, 2, scale)
    return found


def run(
    half: Half,
    x: Tensor,
    before: Mapping[str, Tensor] | None,
    weights: Weights,
    spec: VaeSpec,
    make_tape: Callable[[Mapping[str, Tensor] | None], Tape] = Tape,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One chunk of one half → its output and the caches for the next chunk.

    decode_latent: latents fp32 [1, 16, t, H, W], not normalized → features [1, top, t, H, W].
    decode_pixels: features → frames fp32 [1, 3, 4t, 8H, 8W], −1 black and 1 white, not clamped.
    encode_pixels: frames fp32 [1, 3, 4t, 8H, 8W] → features [1, top, t, H, W].
    encode_latent: features → the latents' mean, fp32 [1, 16, t, H, W].
    ``before`` None is the first chunk: one frame and one latent, t = 1. Features and caches have the weights' dtype.
    """
    parts = parts_of(spec, half)
    tape = make_tape(before)
    x = x.to(next(weight.dtype for name, weight in weights.items() if name.endswith(".weight")))
    if parts.before is not None:
        x = pointwise(x, weights, parts.before.name)
    if parts.head is not None:
        x = tape.convolve(x, weights, parts.head.name)
    for layer in parts.layers:
        x = run_layer(x, weights, layer, tape)
    if parts.tail is not None:
        x = tape.norm_convolve(x, weights[gamma_of(parts.tail)], weights, parts.tail.name)
    if parts.after is not None:
        x = pointwise(x, weights, parts.after.name)
    if half == "decode_pixels":
        x = x.float()
    elif half == "encode_latent":
        x = x[:, : spec.latent].float()
    return x, {name: tape.kept[name] for name in caches(spec, half)}


def gamma_of(tail: Conv) -> str:
    """The weight of the norm before a half's last convolution."""
    return f"{tail.name.removesuffix('.2')}.0.gamma"
