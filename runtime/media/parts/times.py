"""The table at the end of a generation: what each part took."""

from __future__ import annotations

import time
from dataclasses import dataclass

from runtime.pipeline import Pipeline
from runtime.sampler import Step

BACKEND = "load the backend"  # the row of what imports it takes: torch, or TensorRT


@dataclass(frozen=True)
class Part:
    """One row: peaks of device memory in bytes, as planned and as the device counted them."""

    name: str
    seconds: float
    planned: int | None = None
    measured: int | None = None


class StepParts:
    """Adds a row to ``parts`` for each step of a pipeline's generations, and one before it where the expert changed.

    A switch's seconds are what it adds: how much longer its step waited for weights than the step before, in which
    streamed layers were waited for as well. They are not in the step's own.
    """

    def __init__(self, pipe: Pipeline, parts: list[Part]) -> None:
        self._pipe, self._parts = pipe, parts
        self._expert: str | None = None
        self._of, self._last, self._waited, self._peak, self._loading = "", 0.0, 0.0, 0, False

    def begin(self, of: str, peak: int, *, loading: bool = False) -> None:
        """A generation starts now; ``of`` comes before its rows' names, ``peak`` bytes are what it may take.

        ``loading``: its weights are not all there yet, and the first step waits for them.
        """
        self._of, self._last, self._peak, self._loading = of, time.perf_counter(), peak, loading

    def elsewhere(self, seconds: float) -> None:
        """What lay between two steps and is not the model's."""
        self._last += seconds

    def add(self, step: Step) -> None:
        """The step has just ended. Its memory is its switch's too: the weights come while it runs."""
        now, waited = time.perf_counter(), self._pipe.take_waited_seconds()
        peaks = self._peak, self._pipe.runner.device.take_peak()
        seconds = now - self._last
        if self._loading:
            self._parts.append(Part(f"{self._of}load (waiting for weights)", waited, *peaks))
            seconds, waited, self._loading = seconds - waited, 0.0, False
        elif self._expert not in (None, step.expert):
            switch = max(0.0, waited - self._waited)
            self._parts.append(Part(f"{self._of}switch to {step.expert} (waiting for weights)", switch, *peaks))
            seconds -= switch
        self._parts.append(Part(f"{self._of}step {step.index + 1}", seconds, *peaks))
        self._last, self._expert, self._waited = now, step.expert, waited
