"""Timing of a loaded pipeline by stage: random embeddings, a warm-up kept apart, events around every stage run."""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import mean, median
from typing import Any

import numpy as np

from runtime.inputs import TEXT_DIM, latent_shape
from runtime.pipeline import Pipeline
from runtime.run import UnitTime
from runtime.video_shape import tokens_of


def bench(
    pipe: Pipeline,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    steps: int | None = None,
    repeats: int = 3,
) -> dict[str, Any]:
    """Seconds of a generation and of each stage; plain values for JSON. Raises what calling the pipeline raises."""
    shape = latent_shape(pipe.manifest, size, frames)
    embeds = np.random.default_rng(0).standard_normal((64, TEXT_DIM), dtype=np.float32)
    condition = np.zeros((16, *shape), np.float32) if pipe.manifest.model.in_channels > 16 else None

    def generate(times: list[UnitTime] | None) -> float:
        started = time.perf_counter()
        pipe(embeds, size=size, frames=frames, steps=steps, condition=condition, times=times)
        return time.perf_counter() - started

    first = generate(None)
    runs = list[float]()
    times = list[UnitTime]()
    for _ in range(repeats):
        runs.append(generate(times))
    return {
        "model": pipe.manifest.model.name,
        "device": pipe.runner.device.name,
        "tokens": tokens_of(shape),
        "steps": steps or pipe.manifest.sampler.steps,
        "layers_streamed": pipe.placement.streamed,
        "warm_up_seconds": first,
        "generation_seconds": runs,
        "stages": _by_stage(times, repeats),
        "step_seconds": _steps(times, repeats),
    }


def _by_stage(times: list[UnitTime], repeats: int) -> list[dict[str, Any]]:
    groups = defaultdict[str, list[float]](list)
    for unit in times:
        groups[unit.stage].append(unit.seconds)
    return [
        {
            "stage": stage,
            "runs": len(all_) // repeats,
            "mean_ms": 1e3 * mean(all_),
            "median_ms": 1e3 * median(all_),
            "max_ms": 1e3 * max(all_),
            "seconds": sum(all_) / repeats,
        }
        for stage, all_ in groups.items()
    ]


def _steps(times: list[UnitTime], repeats: int) -> list[float]:
    totals = defaultdict[int, float](float)
    for unit in times:
        totals[unit.step] += unit.seconds / repeats
    return [totals[step] for step in sorted(totals)]
