"""How text encoder and VAE are timed: a stopwatch, and the distance between two results."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from runtime.report import Report

Weights = dict[str, Tensor]
T = TypeVar("T")


class Stopwatch:
    """Times functions on a device; ``rows`` are the results, one dictionary each."""

    def __init__(self, device: torch.device, repeats: int, report: Report) -> None:
        self.device, self.rows = device, list[dict[str, Any]]()
        self._cuda, self._repeats, self._report = device.type == "cuda", repeats, report

    def __call__(self, task: str, name: str, function: Callable[[], T]) -> T | None:
        """What ``function`` gave the first time; its best seconds after that and the peak of memory are a row."""
        row: dict[str, Any] = {"task": task, "name": name}
        self.rows.append(row)
        result: T | None = None
        if self._cuda:
            torch.cuda.empty_cache()
        try:
            row["first_seconds"], result = self._once(function)
            if self._cuda:
                torch.cuda.reset_peak_memory_stats()
            row["seconds"] = min(self._once(function)[0] for _ in range(self._repeats))
            row["peak_bytes"] = torch.cuda.max_memory_allocated() if self._cuda else None
        except Exception as error:  # one variant that fails must not cost the others their figures
            row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        said = row.get("failed") or f"{row['seconds']:.3f} s"
        said += f", peak {row['peak_bytes'] / 1e9:.2f} GB" if row.get("peak_bytes") else ""
        self._report.note(f"{task}, {name}: {said}")
        return result

    def _once(self, function: Callable[[], T]) -> tuple[float, T]:
        self._wait()
        started = time.perf_counter()
        result = function()
        self._wait()
        return time.perf_counter() - started, result

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def distance(got: Tensor | None, want: Tensor | None) -> float | None:
    """Relative L2, where both are there."""
    if got is None or want is None:
        return None
    return float((got.float() - want.float()).norm() / want.float().norm())


def opened(make: Callable[[], Any]) -> tuple[Any, str]:
    """An oracle, or None and the reason: it is not installed, or does not fit what else is."""
    try:
        return make(), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def compare(
    watch: Stopwatch,
    task: str,
    ours: list[tuple[str, Callable[[], Tensor]]],
    name: str,
    theirs: Callable[[], Tensor] | None,
    why: str,
) -> None:
    """Rows of all, with their distance to the oracle's result and the oracle's seconds over theirs."""
    want, row = None, None
    if theirs is None:
        watch.rows.append({"task": task, "name": name, "failed": why})
    else:
        want, row = watch(task, name, theirs), watch.rows[-1]
    for title, function in ours:
        got, own = watch(task, title, function), watch.rows[-1]
        own["distance"] = distance(got, want)
        if row is not None and "seconds" in row and "seconds" in own:
            own["speedup"] = row["seconds"] / own["seconds"]
        del got
