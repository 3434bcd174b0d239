"""The DiT as a part: embeddings → latents, by the runtime's pipeline on the shared device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.plan import DIT
from runtime.media.parts.times import StepParts
from runtime.media.request import Request
from runtime.numerics import Array
from runtime.pipeline import Pipeline
from runtime.sampler import Step

#: Called after each step with the step and its latents, fp32 [16, T, H, W].
OnStep = Callable[[Step, Array], None]

_OPTIONS = ("seed", "noise", "size", "frames", "steps", "ode", "sigma_max", "debug")


class DitPart:
    """Latents of one video after the other."""

    name = DIT

    def __init__(self, opened: OpenBundle) -> None:
        self._opened = opened
        self._made: list[tuple[Pipeline, StepParts]] = []
        self._asked: dict[str, Any] = {}
        self._to_come = False

    @property
    def _pipe(self) -> Pipeline:
        if not self._made:
            opened = self._opened
            opened.checks.check(opened.kind.files(opened.manifest, "dit"))
            shared: dict[str, Any] = {"report": opened.report, "shared": opened.staging, "kept": opened.kept(DIT)}
            bundle = opened.folder, opened.manifest, opened.runner, opened.budget
            pipe = Pipeline(*bundle, checks=opened.checks, **shared)
            self._made.append((pipe, StepParts(pipe, opened.times)))
        return self._made[0][0]

    def expect(self, size: tuple[int, int] | None, frames: int | None, steps: int | None) -> None:
        """What ``load`` makes room for. Where nothing is there yet, the next call's first step waits for weights."""
        self._asked = {"size": size, "frames": frames, "steps": steps}
        self._to_come = not self.loaded

    @property
    def loaded(self) -> bool:
        return any(pipe.loaded for pipe, _ in self._made)

    def load(self) -> None:
        self._pipe.prefetch(**self._asked)

    def unload(self) -> None:
        for pipe, _ in self._made:
            pipe.unload()

    def close(self) -> None:
        while self._made:
            self._made.pop()[0].close()

    def latents(
        self,
        request: Request,
        text: npt.NDArray[np.generic],
        condition: Array | None,
        *,
        peak: int,
        of: str = "",
        on_step: OnStep | None = None,
    ) -> Array:
        """Clean latents fp32 [16, T, H, W] of embeddings [n, 4096].

        ``peak``: bytes of device memory that the plan states; ``of``: which of several, as in "2 of 3".
        """
        pipe, rows = self._pipe, self._made[0][1]
        total = request.steps or self._opened.manifest.sampler.steps
        rows.begin(f"video {of.split()[0]}, " if of else "", peak, loading=self._to_come)
        self._to_come = False
        with self._opened.report.stage(f"generate {of}".rstrip()) as update:

            def after(step: Step, latents: Array) -> None:
                rows.add(step)
                update(step.index + 1, total)
                if on_step is not None:
                    on_step(step, latents)

            given: dict[str, Any] = {name: getattr(request, name) for name in _OPTIONS}
            return pipe(text, condition=condition, on_step=after, **given)
