"""One call of a video pipeline: its parts one after the other, each one's weights coming while another computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from plugins.errors import UserError
from runtime.media.decoders import DECODERS, DecoderName
from runtime.media.parts.dit import DitPart, OnStep
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.part import Decoder, VideoPart
from runtime.media.parts.plan import DIT, ENCODE, LONGEST, TEXT, Sizes, beside_dit, plan_parts
from runtime.media.parts.residency import Residency
from runtime.media.parts.text import TextPart
from runtime.media.parts.times import Part
from runtime.media.parts.vae import TinyDecoder, VaeDecoder, VaeEncoder
from runtime.media.preview import Preview
from runtime.media.ready import Ready
from runtime.media.request import Request
from runtime.media.text.encoder import Embeds
from runtime.media.vae.decoder import Frames
from runtime.media.write import written
from runtime.numerics import Array
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


@dataclass
class Parts:
    """The parts of a pipeline. ``plan``: the last call's."""

    text: TextPart
    encoder: VaeEncoder
    dit: DitPart
    full: VaeDecoder
    tiny: TinyDecoder
    plan: Residency | None = None

    @property
    def all(self) -> tuple[VideoPart, ...]:
        return self.text, self.encoder, self.dit, self.full, self.tiny

    def decoder(self, name: DecoderName) -> Decoder:
        return self.full if name == "full" else self.tiny


class Call:
    """Requests that were checked → videos."""

    def __init__(
        self,
        opened: OpenBundle,
        parts: Parts,
        asked: Sequence[Ready],
        *,
        keep: bool,
        on_step: OnStep | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self._opened, self._parts, self._asked = opened, parts, asked
        self._keep, self._on_step, self._cancelled = keep, on_step, cancelled
        self._report, self._times = opened.report, opened.times
        self._prompts = [one.request.prompt for one in asked if one.request.prompt is not None]

    def run(self, made: Callable[[Video], object]) -> None:
        """``made`` hears of each video as soon as it is whole."""
        started = time.perf_counter()
        lengths = self._parts.text.lengths(self._prompts)
        self._plan = self._planned(lengths)
        self._times.append(Part("plan", time.perf_counter() - started))
        self._lay_out()
        texts = self._texts(encodes=bool(lengths))
        several = len(self._asked) > 1
        if several and not self._takes_turns():
            found = [self._latents(one, texts, self._of(number)) for number, one in enumerate(self._asked)]
            for one, latents in zip(self._asked, found, strict=True):
                made(self._finished(one, latents))
            return
        for number, one in enumerate(self._asked):
            made(self._finished(one, self._latents(one, texts, self._of(number))))

    def _planned(self, lengths: Sequence[int]) -> Residency:
        """Where everything will lie. Raises UserError where a part cannot keep to the budget."""
        opened, parts = self._opened, self._parts
        runs = ([TEXT] if lengths else []) + ([ENCODE] if any(one.request.image for one in self._asked) else [])
        runs += [DIT, *self._decoders]
        listed = [part.name for part in parts.all if part.name in runs or part.loaded]
        largest = max(self._asked, key=lambda one: tokens_of(one.shape))
        steps = max(one.request.steps or opened.manifest.sampler.steps for one in self._asked)
        layers = parts.text.layers if TEXT in listed else 0
        previews = any(one.request.preview is not None for one in self._asked)
        sizes = Sizes(largest.size, largest.request.frames, steps, tuple(lengths) or (LONGEST,), layers, previews)
        spare = beside_dit(opened.manifest, opened.runner, sizes, opened.budget)
        parts.dit.expect(largest.size, largest.request.frames, steps, spare)
        again = listed if self._keep else [DIT, *self._decoders] if len(self._asked) > 1 else []
        limits: dict[str, Any] = {"vram": opened.budget, "host_limit": opened.host_limit if self._keep else 0}
        plan = plan_parts(opened.manifest, opened.runner, listed, sizes, again=again, **limits).residency
        if runs != [DIT] and (parts.plan is None or plan.lines() != parts.plan.lines()):  # the DiT states its own plan
            for line in plan.lines():
                self._report.note(line)
        parts.plan = plan
        return plan

    def _lay_out(self) -> None:
        """Give back what does not stay, and start to bring what does, in the order in which it is needed."""
        for part in self._parts.all:
            limit = self._plan.waiting.get(part.name, 0)
            if part.loaded and not self._plan.stays(part.name):
                part.unload()
            self._opened.kept(part.name).allow(limit, part.unload)
        for part in self._parts.all:
            if self._plan.stays(part.name) and self._runs(part.name):
                part.load()

    def _runs(self, name: str) -> bool:
        return any(need.name == name for need in self._plan.needs) and (name != TEXT or bool(self._missing()))

    def _missing(self) -> list[str]:
        return self._parts.text.missing(self._prompts)

    def _takes_turns(self) -> bool:
        """Whether DiT and decoders stay beside each other."""
        return self._plan.stays(DIT) and all(map(self._plan.stays, self._decoders))

    @property
    def _decoders(self) -> list[str]:
        """Those that make frames, by their parts' names."""
        asked = {one.request.decoder for one in self._asked if one.latents_to is None}
        return [self._parts.decoder(name).name for name in DECODERS if name in asked]

    @contextmanager
    def _running(self, part: VideoPart) -> Iterator[Callable[[], None]]:
        """A part's run; what it yields is to be called when its own weights are on their way, and as often as it can.

        Then those of the next part come, where there is room, and a call that was cancelled ends.
        """
        after = self._plan.after(part.name)
        coming = [other for other in self._parts.all if other.name == after]

        def check() -> None:
            if self._cancelled():
                raise Cancelled("The video was cancelled.", remedy="ask for it again")
            while coming:
                coming.pop().load()

        yield check
        if not self._plan.stays(part.name):
            part.unload()

    def _texts(self, *, encodes: bool) -> Mapping[str, Embeds]:
        started = time.perf_counter()
        if not self._prompts:
            return {}
        with self._running(self._parts.text) as check:
            found = self._parts.text.embeddings(list(dict.fromkeys(self._prompts)), check)
        self._add(TEXT, started, planned=encodes)
        return found

    def _latents(self, one: Ready, texts: Mapping[str, Embeds], of: str) -> Array:
        request, frame = one.request, one.first_frame()
        text: npt.NDArray[Any] = texts[request.prompt or ""] if request.embeds is None else request.embeds
        condition = request.condition if frame is None else self._condition(frame, one.shape)
        with self._running(self._parts.dit) as check, self._previewing(one) as show:
            check()

            def after(step: Step, latents: Array) -> None:
                if self._on_step is not None:
                    self._on_step(step, latents)
                check()

            peak = self._plan.peak(DIT)
            told: dict[str, Any] = {"on_step": after, "on_estimate": show}
            return self._parts.dit.latents(request, text, condition, peak=peak, of=of, **told)

    @contextmanager
    def _previewing(self, one: Ready) -> Iterator[OnStep | None]:
        """What hears of each step's estimate, where a preview was asked for."""
        path, manifest, tiny = one.request.preview, self._opened.manifest, self._parts.tiny
        if path is None:
            yield None
            return
        how = one.request.encoding(manifest)
        with Preview(path, one.size, manifest.model.fps, how, tiny.preview) as preview:
            yield preview
        self._times.append(Part("previews (between steps)", preview.seconds))
        if not self._plan.stays(tiny.name):
            tiny.unload()

    def _condition(self, frame: Array, shape: tuple[int, int, int]) -> Array:
        started = time.perf_counter()
        with self._running(self._parts.encoder) as check:
            check()
            condition = self._parts.encoder.condition(frame, shape)
        self._add(ENCODE, started)
        return condition

    def _finished(self, one: Ready, latents: Array) -> Video:
        """The video of latents: in its file, or in memory."""
        request = one.request
        if one.latents_to is not None:
            write_tensors(one.latents_to, {"latents": latents}, request.latents_facts(self._opened.manifest))
            return Video(request, latents, latents_alone=True)
        started, decoder = time.perf_counter(), self._parts.decoder(request.decoder)
        name = "the video" if request.out is None else request.out.name
        with self._running(decoder) as check:
            total = 4 * latents.shape[1] - 3
            frames, encoding = written(decoder.decode(latents), total, one.sink, name, self._report, check)
        self._add(decoder.name, started)
        self._times.append(Part("encode frames (behind the VAE)", encoding))
        return Video(request, latents, frames)

    def _add(self, name: str, started: float, *, planned: bool = True) -> None:
        """A part's row: since ``started``."""
        peaks = (self._plan.peak(name), self._opened.runner.device.take_peak()) if planned else (None, None)
        self._times.append(Part(name, time.perf_counter() - started, *peaks))

    def _of(self, number: int) -> str:
        return "" if len(self._asked) == 1 else f"{number + 1} of {len(self._asked)}"
