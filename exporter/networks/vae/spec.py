"""The table of VAEs: widths, the layers in order, and the feature caches that one chunk hands to the next.

Names of layers are Wan's own, so that its checkpoint needs no renaming. Wan2.1's VAE halves height and width three
times and the number of frames (all but the first) twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PIXELS = 3
CHUNK = 4  # frames of video per latent frame after the first


@dataclass(frozen=True)
class Residual:
    """Two causal convolutions beside a shortcut, which is a convolution where the width changes."""

    name: str
    c_in: int
    c_out: int


@dataclass(frozen=True)
class Attention:
    """Self-attention of one head over the positions of each frame."""

    name: str
    channels: int


@dataclass(frozen=True)
class Resample:
    """Height and width × 2 ("up", which also halves the channels) or ÷ 2 ("down"); ``temporal``: the frames too."""

    name: str
    channels: int
    direction: Literal["up", "down"]
    temporal: bool


Layer = Residual | Attention | Resample


@dataclass(frozen=True)
class VaeSpec:
    """One VAE. ``multipliers`` × ``base`` are the widths by level, from pixels to latents."""

    name: str
    base: int
    latent: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residuals: int = 2
    temporal: tuple[bool, ...] = (False, True, True)

    @property
    def top(self) -> int:
        """Channels at the latents' resolution."""
        return self.base * self.multipliers[-1]

    @property
    def factor(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.multipliers) - 1))


def middle_layers(spec: VaeSpec, side: str) -> tuple[Layer, ...]:
    """The layers between the two halves, the same in encoder and decoder; ``side`` is "encoder" or "decoder"."""
    c = spec.top
    return (
        Residual(f"{side}.middle.0", c, c),
        Attention(f"{side}.middle.1", c),
        Residual(f"{side}.middle.2", c, c),
    )


def down_layers(spec: VaeSpec) -> tuple[Layer, ...]:
    """The encoder's ``downsamples``, from pixels to latents."""
    layers: list[Layer] = []
    width = spec.base
    for level, multiplier in enumerate(spec.multipliers):
        for _ in range(spec.residuals):
            layers.append(Residual(f"encoder.downsamples.{len(layers)}", width, multiplier * spec.base))
            width = multiplier * spec.base
        if level < len(spec.multipliers) - 1:
            layers.append(Resample(f"encoder.downsamples.{len(layers)}", width, "down", spec.temporal[level]))
    return tuple(layers)


def up_layers(spec: VaeSpec) -> tuple[Layer, ...]:
    """The decoder's ``upsamples``, from latents to pixels; it has one residual more per level than the encoder."""
    layers: list[Layer] = []
    width = spec.top
    for level, multiplier in enumerate(reversed(spec.multipliers)):
        for _ in range(spec.residuals + 1):
            layers.append(Residual(f"decoder.upsamples.{len(layers)}", width, multiplier * spec.base))
            width = multiplier * spec.base
        if level < len(spec.multipliers) - 1:
            temporal = tuple(reversed(spec.temporal))[level]
            layers.append(Resample(f"decoder.upsamples.{len(layers)}", width, "up", temporal))
            width //= 2
    return tuple(layers)


_WAN_2_1 = VaeSpec(name="Wan2.1", base=96)

VAES: Mapping[str, VaeSpec] = MappingProxyType(
    {spec.name: spec for spec in (_WAN_2_1, VaeSpec(name="Wan2.1-tiny", base=8, residuals=1))}
)
