"""Prompt → video, in one object that a program holds: text encoder, DiT and decoder on one device.

with VideoPipeline.load("engines/wan2.1-1.3b-480p-rtx5090", vram="24GB") as video:
    video("A cat on a surfboard", out="cat.mp4")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from plugins.interrupts import Ending, Exclusive
from runtime.backends.kind import BackendKind
from runtime.backends.registry import backend_kind
from runtime.bundle import Manifest, load_manifest
from runtime.byte_sizes import parse_bytes
from runtime.choices import chosen
from runtime.file_checks import Verify, parse_verify
from runtime.media.parts.dit import DitPart, OnStep
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.part import VideoPart
from runtime.media.parts.plan import DECODE, DIT, ENCODE, TEXT, plan_parts
from runtime.media.parts.text import TextPart
from runtime.media.parts.times import Part
from runtime.media.parts.vae import VaeDecoder, VaeEncoder
from runtime.media.ready import Ready, ready
from runtime.media.request import Request
from runtime.media.text.encoder import Embeds
from runtime.media.vae.decoder import Frames
from runtime.media.write import written
from runtime.numerics import Array
from runtime.report import Report, Silent
from runtime.sampler import Step
from runtime.tensor_files import write_tensors
from runtime.video_shape import tokens_of


class Cancelled(UserError):
    """The caller ended a video before it was whole; nothing of it was kept."""


@dataclass(frozen=True)
class Video:
    """What was made. ``latents`` fp32 [16, T, H, W]; ``frames`` uint8 [n, h, w, 3], None where a file has them.

    ``latents_alone``: no frames were made.
    """

    request: Request
    latents: Array
    frames: Frames | None = None
    latents_alone: bool = False


class VideoPipeline:
    """A loaded bundle. One thread at a time: a second caller gets a UserError. ``times``: what the last call took.

    Same request, same bytes, on one backend and GPU, whatever the budget.
    """

    def __init__(self, opened: OpenBundle) -> None:
        """Use ``load``."""
        self.manifest: Manifest = opened.manifest
        self.times: list[Part] = opened.times
        self._opened, self._report = opened, opened.report
        self._text, self._dit = TextPart(opened), DitPart(opened)
        self._encoder, self._decoder = VaeEncoder(opened), VaeDecoder(opened)
        self._parts: tuple[VideoPart, ...] = (self._text, self._encoder, self._dit, self._decoder)
        self._give_back = Ending(self, _close, opened, self._parts, atexit=False)
        self._callers = Exclusive()

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        vram: str | int | None = None,
        backend: str | BackendKind = "auto",
        boundary: float | None = None,
        topk_milli: int | None = None,
        verify: Verify = "auto",
        report: Report | None = None,
    ) -> VideoPipeline:
        """Read a bundle's manifest. The device is opened, and weights come, with the first call that needs them.

        vram: the most device memory to use, such as "24GB"; None means what is free now. backend, boundary, topk_milli,
        verify: as in ``Pipeline.load``. Raises UserError for whatever does not fit together, and says what would.
        """
        folder, report, kind = Path(bundle), report or Silent(), backend_kind(backend)
        choices: dict[str, Any] = {"boundary": boundary, "topk_milli": topk_milli, "any_topk": kind.any_topk}
        manifest = chosen(load_manifest(folder), folder, **choices)
        budget = None if vram is None else parse_bytes(vram)
        return cls(OpenBundle(folder, manifest, kind, budget, verify=parse_verify(verify), report=report))

    def __enter__(self) -> VideoPipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free all memory of host and device. May be called twice. Raises UserError while a call is running."""
        with self._alone():
            self._give_back()

    def __call__(
        self,
        prompt: str | None = None,
        out: str | Path | None = None,
        *,
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> Video:
        """One video; ``options`` are ``Request``'s fields. Without ``out`` its frames come back.

        ``cancelled`` is asked between steps and chunks: True ends the call with Cancelled. Raises UserError for what
        cannot be made, before anything is loaded. The pipeline can be called again after any error.
        """
        request = Request(prompt, None if out is None else Path(out), **options)
        made: list[Video] = []
        self.make([request], made.append, on_step=on_step, cancelled=cancelled)
        return made[0]

    def make(
        self,
        requests: Sequence[Request],
        made: Callable[[Video], object],
        *,
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """The videos of several requests: ``made`` hears of each as soon as it is whole.

        All are checked before anything is loaded, all prompts are encoded at once.
        """
        asked = ready(self.manifest, requests)
        with self._working():
            self.times.clear()
            self._plan(asked)
            texts = self._texts(asked)
            for number, one in enumerate(asked, 1):
                self._check(cancelled)
                of = "" if len(asked) == 1 else f"{number} of {len(asked)}"
                made(self._one(one, texts, of, on_step, cancelled))

    def embeddings(self, prompts: Sequence[str]) -> list[Embeds]:
        """bf16 bits [n, 4096] of each prompt, as ``Request.embeds`` takes them. Raises UserError."""
        with self._working():
            self.times.clear()
            found = self._text.embeddings(list(dict.fromkeys(prompts)))
            return [found[prompt] for prompt in prompts]

    def decode(self, latents: Array) -> Frames:
        """Frames uint8 [n, 8H, 8W, 3] of latents fp32 [16, T, H, W]. Raises UserError without the VAE's weights."""
        with self._working():
            return np.concatenate(list(self._decoder.decode(latents)))

    def _one(
        self,
        asked: Ready,
        texts: Mapping[str, Embeds],
        of: str,
        on_step: OnStep | None,
        cancelled: Callable[[], bool],
    ) -> Video:
        request = asked.request

        def after(step: Step, latents: Array) -> None:
            if on_step is not None:
                on_step(step, latents)
            self._check(cancelled)

        text: npt.NDArray[Any] = texts[request.prompt or ""] if request.embeds is None else request.embeds
        frame = asked.first_frame()
        condition = request.condition if frame is None else self._encoder.condition(frame, asked.shape)
        latents = self._dit.latents(request, text, condition, of=of, on_step=after)
        if asked.latents_to is not None:
            write_tensors(asked.latents_to, {"latents": latents}, self._facts(request))
            return Video(request, latents, latents_alone=True)
        return Video(request, latents, self._decode(asked, latents, lambda: self._check(cancelled)))

    def _decode(self, asked: Ready, latents: Array, check: Callable[[], None]) -> Frames | None:
        started, decoder = time.perf_counter(), self._decoder
        _, count, height, width = latents.shape
        self._report.note(decoder.line(height, width))
        name = "the video" if asked.request.out is None else asked.request.out.name
        frames, encoding = written(decoder.decode(latents), 4 * count - 3, asked.sink, name, self._report, check)
        peaks = decoder.peak(height, width), self._opened.runner.device.take_peak()
        self.times.append(Part(DECODE, time.perf_counter() - started, *peaks))
        self.times.append(Part("encode frames (behind the VAE)", encoding))
        return frames

    def _texts(self, asked: Sequence[Ready]) -> Mapping[str, Embeds]:
        prompts = [one.request.prompt for one in asked if one.request.prompt is not None]
        return self._text.embeddings(list(dict.fromkeys(prompts))) if prompts else {}

    def _facts(self, request: Request) -> dict[str, str]:
        steps = request.steps or self.manifest.sampler.steps
        own = {"seed": str(request.seed), "steps": str(steps), "ode": str(request.ode).lower()}
        return {"model": self.manifest.model.name, **own, **request.facts}

    def _plan(self, asked: Sequence[Ready]) -> None:
        """Say what each part will need of device memory. Raises UserError if one cannot."""
        started = time.perf_counter()
        prompts = [one.request.prompt for one in asked if one.request.prompt is not None]
        lengths = self._text.lengths(prompts)
        parts = ([TEXT] if lengths else []) + ([ENCODE] if any(one.request.image for one in asked) else []) + [DIT]
        parts += [DECODE] if any(one.latents_to is None for one in asked) else []
        if parts == [DIT]:
            return  # nothing comes before the pipeline, which states its own plan
        largest = max(asked, key=lambda one: tokens_of(one.shape)).request
        wanted: dict[str, Any] = {"size": largest.size, "frames": largest.frames, "steps": largest.steps}
        opened = self._opened
        wanted |= {"lengths": lengths, "vram": opened.budget}
        for line in plan_parts(self.manifest, opened.kind, parts, **wanted).lines():
            self._report.note(line)
        self.times.append(Part("plan", time.perf_counter() - started))

    @staticmethod
    def _check(cancelled: Callable[[], bool]) -> None:
        if cancelled():
            raise Cancelled("The video was cancelled.", remedy="ask for it again")

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One call's work, on the device."""
        with self._alone():
            if self._give_back.done:
                raise UserError("This pipeline is closed.", remedy="load it again")
            with self._opened.runner.device.current():
                yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One caller at a time."""
        mine = object()
        try:
            if not self._callers.take(mine):
                raise UserError(
                    "This pipeline is in use by another call.",
                    expected="one caller at a time",
                    remedy="wait for the other call, or load a second pipeline",
                )
            try:
                yield
            finally:
                self._callers.give(mine)
        finally:
            self._callers.give(mine)  # again: Ctrl-C may have come before it was given


def _close(opened: OpenBundle, parts: Sequence[VideoPart]) -> None:
    for part in parts:
        part.close()
    opened.close()
