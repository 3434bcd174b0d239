"""The VAE as two parts: an image → the latents of [image, zeros…], and latents → frames; the tiny decoder as one."""

from __future__ import annotations

import time
from collections.abc import Iterator

from runtime.media.files.image import conditioning_chunks
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.plan import DECODE, ENCODE, TINY
from runtime.media.parts.times import Part
from runtime.media.vae.decoder import Frames, TinyVae, Vae
from runtime.media.vae.plan import Task, VaePlan
from runtime.numerics import Array


class _VaePart:
    """What both directions have in common."""

    task: Task

    def __init__(self, opened: OpenBundle) -> None:
        self._opened = opened

    def load(self) -> None:
        """Nothing yet: weights come with the first chunk."""

    def unload(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is kept."""

    def line(self, height: int, width: int) -> str:
        return self._plan(height, width).line(f"The VAE {self.task}s")

    def peak(self, height: int, width: int) -> int:
        return self._plan(height, width).peak

    def _plan(self, height: int, width: int) -> VaePlan:
        return self._vae().plan(self.task, height, width)

    def _vae(self) -> Vae:
        opened = self._opened
        return Vae(opened.runner, opened.manifest, opened.weights("vae"), opened.budget)


class VaeEncoder(_VaePart):
    """An image-to-video model's conditioning."""

    name, task = ENCODE, "encode"

    def condition(self, frame: Array, shape: tuple[int, int, int]) -> Array:
        """Latents fp32 [16, T, H, W] of a first frame fp32 [3, 8H, 8W] in [−1, 1]."""
        started = time.perf_counter()
        count, height, width = shape
        device = self._opened.runner.device
        with self._opened.report.stage("encode the image"):
            self._opened.report.note(self.line(height, width))
            try:
                latents = self._vae().encode(conditioning_chunks(frame, count), height, width)
            finally:
                self._opened.runner.release()
        self._opened.checks.finish()
        peaks = self.peak(height, width), device.take_peak()
        self._opened.times.append(Part(ENCODE, time.perf_counter() - started, *peaks))
        return latents


class VaeDecoder(_VaePart):
    """The VAE's own decoder (see ``parts.part.Decoder``)."""

    name = DECODE
    task: Task = "decode"

    def decode(self, latents: Array) -> Iterator[Frames]:
        try:
            vae = self._vae()
            self._opened.checks.finish()
            yield from vae.decode(latents)
        finally:
            self._opened.runner.release()


class TinyDecoder(VaeDecoder):
    """The tiny decoder: the same latents, a fraction of the time, less detail."""

    name = TINY
    task: Task = "tiny"

    def line(self, height: int, width: int) -> str:
        return self._plan(height, width).line("The tiny decoder decodes")

    def _vae(self) -> TinyVae:
        opened = self._opened
        return TinyVae(opened.runner, opened.manifest, opened.weights("tiny"), opened.budget)
