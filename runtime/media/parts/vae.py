"""The VAE as two parts: an image → the latents of [image, zeros…], and latents → frames."""

from __future__ import annotations

from collections.abc import Iterator

from plugins.errors import UserError
from runtime.media.files.image import conditioning_chunks
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.plan import DECODE, ENCODE
from runtime.media.vae.decoder import Frames, Vae
from runtime.media.vae.plan import Task
from runtime.media.vae.weights import VaeWeights
from runtime.numerics import Array


class _VaePart:
    """What both directions have in common."""

    name: str
    task: Task

    def __init__(self, opened: OpenBundle) -> None:
        self._opened = opened
        self._made: list[VaeWeights] = []

    @property
    def _weights(self) -> VaeWeights:
        if not self._made:
            opened = self._opened
            halves = [opened.manifest.stage(f"{self.task}_{half}") for half in ("latent", "next")]
            shared = opened.staging, opened.kept(self.name)
            self._made.append(VaeWeights(opened.runner.device, halves, opened.weights("vae"), *shared))
        return self._made[0]

    @property
    def loaded(self) -> bool:
        return any(weights.loaded for weights in self._made)

    def load(self) -> None:
        self._opened.begin_checks("vae")
        self._weights.load()

    def unload(self) -> None:
        for weights in self._made:
            weights.unload()

    def close(self) -> None:
        self.unload()
        self._made.clear()

    def line(self, height: int, width: int) -> str:
        return self._vae().plan(self.task, height, width).line(f"The VAE {self.task}s")

    def _vae(self) -> Vae:
        opened = self._opened
        return Vae(opened.runner, opened.manifest, self._weights, opened.budget)

    def _verified(self) -> None:
        """Raises UserError where the weights are not the manifest's: none of them stay."""
        try:
            self._opened.finish_checks("vae")
        except UserError:
            self.unload()
            raise


class VaeEncoder(_VaePart):
    """An image-to-video model's conditioning."""

    name, task = ENCODE, "encode"

    def condition(self, frame: Array, shape: tuple[int, int, int]) -> Array:
        """Latents fp32 [16, T, H, W] of a first frame fp32 [3, 8H, 8W] in [−1, 1]."""
        count, height, width = shape
        self.load()
        with self._opened.report.stage("encode the image"):
            try:
                latents = self._vae().encode(conditioning_chunks(frame, count), height, width)
            finally:
                self._opened.runner.release()
        self._verified()
        return latents


class VaeDecoder(_VaePart):
    """The VAE's own decoder (see ``parts.part.Decoder``)."""

    name, task = DECODE, "decode"

    def decode(self, latents: Array) -> Iterator[Frames]:
        self.load()
        try:
            yield from self._vae().decode(latents)
        finally:
            self._opened.runner.release()
        self._verified()
