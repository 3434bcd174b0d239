"""What was measured on real GPUs: runs as ``turbotrt bench kernels|step --json`` print them, kept in measured.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from exporter.networks.dit.options import BlockOptions
from plugins.cost import Cost, cost
from plugins.registry import OPS

FILE = Path(__file__).with_suffix(".json")


class LaunchTime(msgspec.Struct, frozen=True):
    """One launch of an op's plan: its kernel and ms."""

    kernel: str
    ms: float


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """One op's median time in ms; dims and attributes in full; its launches in order.

    ``rate``: tensor operations a clock of an SM by the model of the last launch (plugins.sass.timing), on the device
    that ran it.
    """

    op: str
    dims: dict[str, int]
    attributes: dict[str, int | str]
    ms: float
    launches: list[LaunchTime] = []
    rate: float | None = None

    @property
    def cost(self) -> Cost:
        """What it had to move and compute."""
        return cost(OPS[self.op], self.dims, self.attributes)


class Proxy(msgspec.Struct, frozen=True):
    """The Hopper device that stood in for an RTX part, and whose kernels it ran."""

    device: str
    kernels_of_sm: int


class Run(msgspec.Struct, frozen=True, omit_defaults=True):
    """One benchmark run: the GPU's and the model's names, where the figures come from, and a step's blocks in ms.

    ``portable``: of the kernels that other SMs run too, where the GPU's own differ from them. ``proxy``: where another
    GPU ran this one's kernels.
    """

    gpu: str
    model: str
    source: str
    kernels: list[Measured] = []
    step_ms: float | None = None
    portable: bool = False
    proxy: Proxy | None = None


@cache
def runs() -> tuple[Run, ...]:
    """The committed runs."""
    return tuple(msgspec.json.decode(FILE.read_bytes(), type=list[Run]))


def measured_ops(gpu: str, *, portable: bool) -> list[Measured]:
    """All ops measured on a GPU: with its own kernels; ``portable``: with other SMs', where those were measured."""

    def of(kind: bool) -> list[Measured]:
        found = [run for run in runs() if (run.gpu, run.portable, run.proxy) == (gpu, kind, None)]
        return [kernel for run in found for kernel in run.kernels]

    if not portable:
        return of(False)
    replaced = {kernel.op for kernel in of(True)}
    return of(True) + [kernel for kernel in of(False) if kernel.op not in replaced]


def proxied_ops() -> list[tuple[Proxy, Measured]]:
    """All ops of RTX parts that were measured by proxy."""
    return [(run.proxy, kernel) for run in runs() if run.proxy is not None for kernel in run.kernels]


def measured_step(gpu: str, model: str) -> float | None:
    """ms of the blocks of one step of a model on a GPU, if measured; the latest run counts."""
    found = [run for run in runs() if (run.gpu, run.model, run.proxy) == (gpu, model, None)]
    steps = [run.step_ms for run in found if run.step_ms is not None]
    return steps[-1] if steps else None


def taken_over(old: Sequence[Run], printed: bytes) -> list[Run]:
    """The runs with what one benchmark printed; kernels or a step that were measured on the same before are replaced.

    Raises ValueError where the block was not the default one: its step has no place in the table.
    """
    options: dict[str, Any] = msgspec.json.decode(printed)
    if wrong := {name: options[name] for name, value in asdict(BlockOptions()).items() if options[name] != value}:
        raise ValueError(f"only runs with the default options are kept, this one has {wrong}")
    new = msgspec.json.decode(printed, type=Run)
    at = next((index for index, run in enumerate(old) if _subject(run) == _subject(new)), None)
    if at is None:
        return [*old, new]
    kept = old[at]
    merged = msgspec.structs.replace(
        kept,
        source=new.source if new.kernels else kept.source,
        proxy=new.proxy,
        kernels=new.kernels or kept.kernels,
        step_ms=kept.step_ms if new.step_ms is None else new.step_ms,
    )
    return [*old[:at], merged, *old[at + 1 :]]


def _subject(run: Run) -> tuple[str, str, bool, bool]:
    return run.gpu, run.model, run.portable, run.proxy is not None


def dumped(content: Sequence[Run]) -> str:
    """The file's text: one op a line, ms to a tenth of a microsecond."""
    lines = []
    for run in content:
        head = msgspec.json.encode(msgspec.structs.replace(run, kernels=[])).decode()
        ops = ",\n".join(f"  {msgspec.json.encode(_rounded(op)).decode()}" for op in run.kernels)
        lines.append(f" {head}" if not ops else f' {head[:-1]},"kernels":[\n{ops}\n ]}}')
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _rounded(op: Measured) -> Measured:
    launches = [LaunchTime(launch.kernel, round(launch.ms, 4)) for launch in op.launches]
    rate = None if op.rate is None else round(op.rate, 1)
    return msgspec.structs.replace(op, ms=round(op.ms, 4), launches=launches, rate=rate)
