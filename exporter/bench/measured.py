"""What was measured on real GPUs: runs as ``turbotrt bench … --json`` prints them, committed in measured.json."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec


class Measured(msgspec.Struct, frozen=True):
    """One op's median time in ms; dims and attributes in full."""

    op: str
    dims: dict[str, int]
    attributes: dict[str, int | str]
    ms: float


class Run(msgspec.Struct, frozen=True):
    """One benchmark run: the GPU's and the model's names, where the figures come from, and a step's blocks in ms.

    ``portable``: of the kernels that other SMs run too, where the GPU's own differ from them.
    """

    gpu: str
    model: str
    source: str
    kernels: list[Measured]
    step_ms: float | None = None
    portable: bool = False


@cache
def runs() -> tuple[Run, ...]:
    """The committed runs."""
    return tuple(msgspec.json.decode(Path(__file__).with_suffix(".json").read_bytes(), type=list[Run]))


def measured_ops(gpu: str, *, portable: bool) -> list[Measured]:
    """All ops measured on a GPU: with its own kernels; ``portable``: with other SMs', where those were measured."""

    def of(kind: bool) -> list[Measured]:
        return [kernel for run in runs() if (run.gpu, run.portable) == (gpu, kind) for kernel in run.kernels]

    if not portable:
        return of(False)
    replaced = {kernel.op for kernel in of(True)}
    return of(True) + [kernel for kernel in of(False) if kernel.op not in replaced]


def measured_step(gpu: str, model: str) -> float | None:
    """ms of the blocks of one step of a model on a GPU, if measured; the latest run counts."""
    steps = [run.step_ms for run in runs() if (run.gpu, run.model) == (gpu, model) and run.step_ms is not None]
    return steps[-1] if steps else None
