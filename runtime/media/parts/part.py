"""What every part of prompt → video is to the pipeline that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from runtime.media.vae.decoder import Frames
from runtime.numerics import Array


class VideoPart(Protocol):
    """One part on the pipeline's device. It runs by a method of its own, whether it was loaded before or not."""

    name: str

    @property
    def loaded(self) -> bool:
        """Whether its weights are on the device, or on their way."""

    def load(self) -> None:
        """Start to bring its weights to the device, behind what runs there; returns at once."""

    def unload(self) -> None:
        """Give its device memory back; the next run loads again."""

    def close(self) -> None:
        """Give everything back."""


class Decoder(VideoPart, Protocol):
    """A part that makes frames of latents: the VAE's decoder, or a smaller one of the same latents."""

    def line(self, height: int, width: int) -> str:
        """How latents [16, T, height, width] are decoded, and in how much memory. Raises UserError if none fits."""

    def decode(self, latents: Array) -> Iterator[Frames]:
        """Frames uint8 [t, 8H, 8W, 3] of latents fp32 [16, T, H, W], chunk by chunk: t is 1 first, then 4."""
