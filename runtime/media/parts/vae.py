"""The VAE as two parts: an image → the latents of [image, zeros…], and latents → frames; the tiny decoder as one."""

from __future__ import annotations

from collections.abc import Iterator

from plugins.errors import UserError
from runtime.bundle import MediaComponent
from runtime.media.files.image import conditioning_chunks
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.plan import DECODE, ENCODE, TINY
from runtime.media.vae.decoder import Frames, TinyVae, Vae
from runtime.media.vae.plan import Task, halves_of
from runtime.media.vae.weights import VaeWeights
from runtime.numerics import Array


class _VaePart:
    """What both directions have in common."""

    name: str
    task: Task
    component: MediaComponent = "vae"
    title = "VAE"

    def __init__(self, opened: OpenBundle) -> None:
        self._opened = opened
        self._made: list[VaeWeights] = []

    @property
    def _weights(self) -> VaeWeights:
        if not self._made:
            opened = self._opened
            halves = [opened.manifest.stage(name) for name in halves_of(self.task)]
            shared = opened.staging, opened.kept(self.name)
            self._made.append(VaeWeights(opened.runner.device, halves, opened.weights(self.component), *shared))
        return self._made[0]

    @property
    def loaded(self) -> bool:
        return any(weights.loaded for weights in self._made)

    def load(self) -> None:
        self._opened.begin_checks(self.component)
        self._weights.load()

    def unload(self) -> None:
        for weights in self._made:
            weights.unload()

    def close(self) -> None:
        self.unload()
        self._made.clear()

    def line(self, height: int, width: int) -> str:
        return (
            self._vae()
            .plan(self.task, height, width)
            .line(f"The {self.title} {'encodes' if self.task == 'encode' else 'decodes'}")
        )

    def _vae(self) -> Vae:
        opened = self._opened
        return Vae(opened.runner, opened.manifest, self._weights, opened.left)

    def _verified(self) -> None:
        """Raises UserError where the weights are not the manifest's: none of them stay."""
        try:
            self._opened.finish_checks(self.component)
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

    name = DECODE
    task: Task = "decode"

    def decode(self, latents: Array) -> Iterator[Frames]:
        self.load()
        try:
            yield from self._vae().decode(latents)
        finally:
            self._opened.runner.release()
        self._verified()


class TinyDecoder(VaeDecoder):
    """The tiny decoder: the same latents, a fraction of the time, less detail.

    It also runs beside the DiT, in activation memory that is then the DiT's too.
    """

    name = TINY
    task: Task = "tiny"
    component: MediaComponent = "tiny"
    title = "tiny decoder"

    def preview(self, latents: Array) -> Iterator[Frames]:
        """``decode`` while the DiT's run holds activation memory, which stays."""
        self.load()
        yield from self._vae().decode(latents)
        self._verified()

    def _vae(self) -> TinyVae:
        opened = self._opened
        return TinyVae(opened.runner, opened.manifest, self._weights, opened.left)
