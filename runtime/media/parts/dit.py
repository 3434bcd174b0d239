"""The DiT as a part: embeddings → latents, by the runtime's pipeline on the shared device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.plan import DIT
from runtime.media.parts.times import Part, StepParts
from runtime.media.request import Request
from runtime.numerics import Array
from runtime.pipeline import Pipeline
from runtime.sampler import Step

#: Called after each step with the step and its latents, fp32 [16, T, H, W].
OnStep = Callable[[Step, Array], None]


class DitPart:
    """Latents of one video after the other."""

    name = DIT

    def __init__(self, opened: OpenBundle) -> None:
        self._opened = opened
        self._made: list[Pipeline] = []
        self._rows: list[StepParts] = []

    @property
    def _pipe(self) -> Pipeline:
        if not self._made:
            opened = self._opened
            shared = opened.folder, opened.manifest, opened.runner, opened.budget
            self._made.append(Pipeline(*shared, checks=opened.checks, report=opened.report, own=False))
            self._rows = [StepParts(self._made[0], opened.times)]
        return self._made[0]

    def load(self) -> None:
        """Nothing yet: weights come with the first call."""

    def unload(self) -> None:
        for pipe in self._made:
            pipe.unload()

    def close(self) -> None:
        while self._made:
            self._made.pop().close()

    def latents(
        self,
        request: Request,
        text: npt.NDArray[np.generic],
        condition: Array | None,
        *,
        of: str = "",
        on_step: OnStep | None = None,
    ) -> Array:
        """Clean latents fp32 [16, T, H, W] of embeddings [n, 4096]; ``of``: which of several, as in "2 of 3"."""
        pipe, times, started = self._pipe, self._opened.times, time.perf_counter()
        if pipe.ready(request.size, request.frames, request.steps):
            device = self._opened.runner.device
            times.append(Part("load", time.perf_counter() - started, pipe.placement.weights, device.take_peak()))
        rows = self._rows[0]
        total = request.steps or self._opened.manifest.sampler.steps
        rows.begin(f"video {of.split()[0]}, " if of else "")
        with self._opened.report.stage(f"generate {of}".rstrip()) as update:

            def after(step: Step, latents: Array) -> None:
                rows.add(step)
                update(step.index + 1, total)
                if on_step is not None:
                    on_step(step, latents)

            given: dict[str, Any] = {name: getattr(request, name) for name in _OPTIONS}
            return pipe(text, condition=condition, on_step=after, **given)


_OPTIONS = ("seed", "noise", "size", "frames", "steps", "ode", "sigma_max", "debug")
