"""Prompt → video, in one object that a program holds: text encoder, DiT and decoder on one device.

with VideoPipeline.load("engines/wan2.1-1.3b-480p-rtx5090", vram="24GB") as video:
    video("A cat on a surfboard", out="cat.mp4")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from plugins.errors import UserError
from plugins.interrupts import Ending, Exclusive
from runtime.backends.kind import BackendKind
from runtime.backends.registry import backend_kind
from runtime.bundle import Manifest, load_manifest
from runtime.byte_sizes import parse_bytes
from runtime.choices import chosen
from runtime.file_checks import Verify, parse_verify
from runtime.media.call import Call, Cancelled, Parts, Video
from runtime.media.decoders import DecoderName
from runtime.media.parts.dit import DitPart, OnStep
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.residency import HOST_LIMIT, Residency
from runtime.media.parts.text import TextPart
from runtime.media.parts.times import BACKEND, Part
from runtime.media.parts.vae import TinyDecoder, VaeDecoder, VaeEncoder
from runtime.media.ready import ready
from runtime.media.request import Request
from runtime.media.text.encoder import Embeds
from runtime.media.vae.decoder import Frames
from runtime.numerics import Array
from runtime.one_caller import one_caller
from runtime.report import Report, Silent

__all__ = ["Cancelled", "Request", "Video", "VideoPipeline"]


class VideoPipeline:
    """A bundle on one device. One thread at a time: a second caller gets a UserError. ``times``: of the last call.

    What fits stays on the device between calls (``parts.residency``). Same request, same bytes, on one backend and GPU,
    whatever the budget.
    """

    def __init__(self, opened: OpenBundle, *, keep: bool) -> None:
        """Use ``load``."""
        self.manifest: Manifest = opened.manifest
        self.times: list[Part] = opened.times
        self._opened, self._report, self._keep = opened, opened.report, keep
        self._parts = Parts(
            TextPart(opened), VaeEncoder(opened), DitPart(opened), VaeDecoder(opened), TinyDecoder(opened)
        )
        self._give_back = Ending(self, _close, opened, self._parts, atexit=False)
        self._callers = Exclusive()
        self._before: list[Part] = []  # what is part of the first call's time

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        vram: str | int | None = None,
        host: str | int = HOST_LIMIT,
        keep: bool = True,
        backend: str | BackendKind = "auto",
        boundary: float | None = None,
        topk_milli: int | None = None,
        verify: Verify = "auto",
        report: Report | None = None,
    ) -> VideoPipeline:
        """Read a bundle's manifest. The device is opened, and weights come, with the first call that needs them.

        vram: the most device memory to use, such as "24GB"; None means what is free now. host: the most page-locked
        memory for weights that do not fit there. keep: whether weights stay between calls; a process that makes one
        video has no use for that. backend, boundary, topk_milli, verify: as in ``Pipeline.load``. Raises UserError for
        whatever does not fit together, and says what would.
        """
        started = time.perf_counter()
        folder, kind = Path(bundle), backend_kind(backend)
        loaded = Part(BACKEND, time.perf_counter() - started)
        choices: dict[str, Any] = {"boundary": boundary, "topk_milli": topk_milli, "any_topk": kind.any_topk}
        manifest = chosen(load_manifest(folder), folder, **choices)
        opened = OpenBundle(
            folder,
            manifest,
            kind,
            vram=None if vram is None else parse_bytes(vram),
            host_limit=0 if host == 0 else parse_bytes(host),
            verify=parse_verify(verify),
            report=report or Silent(),
        )
        made = cls(opened, keep=keep)
        made._before.append(loaded)
        return made

    def __enter__(self) -> VideoPipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free all memory of host and device. May be called twice. Raises UserError while a call is running."""
        with one_caller(self._callers):
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

        ``cancelled`` is asked between layers, steps and chunks: True ends the call with Cancelled. Raises UserError for
        what cannot be made, before anything is loaded. The pipeline can be called again after any error.
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

        All are checked before anything is loaded, all prompts are encoded at once. Where DiT and decoder do not fit
        beside each other, all latents are made before the first is decoded.
        """
        asked = ready(self.manifest, requests)
        with self._working():
            call = Call(self._opened, self._parts, asked, keep=self._keep, on_step=on_step, cancelled=cancelled)
            call.run(made)

    @property
    def placements(self) -> Residency:
        """Where the last call planned each part's weights to be. Raises UserError before the first."""
        if self._parts.plan is None:
            raise UserError("Nothing was made yet: there is no plan.", remedy="make a video")
        return self._parts.plan

    def embeddings(self, prompts: Sequence[str]) -> list[Embeds]:
        """bf16 bits [n, 4096] of each prompt, as ``Request.embeds`` takes them. Raises UserError."""
        with self._working():
            found = self._parts.text.embeddings(list(dict.fromkeys(prompts)))
            return [found[prompt] for prompt in prompts]

    def decode(self, latents: Array, decoder: DecoderName = "full") -> Frames:
        """Frames uint8 [n, 8H, 8W, 3] of latents fp32 [16, T, H, W]. Raises UserError without the decoder's weights."""
        return np.concatenate(list(self.stream(latents, decoder)))

    def stream(self, latents: Array, decoder: DecoderName = "full") -> Iterator[Frames]:
        """``decode`` chunk by chunk: 1 frame first, then 4; the next one is made when it is asked for."""
        with self._working():
            yield from self._parts.decoder(decoder).decode(latents)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One call's work, on the device."""
        with one_caller(self._callers):
            if self._give_back.done:
                raise UserError("This pipeline is closed.", remedy="load it again")
            self.times[:] = self._before
            self._before.clear()
            with self._opened.runner.device.current():
                yield


def _close(opened: OpenBundle, parts: Parts) -> None:
    for part in parts.all:
        part.close()
    opened.close()
