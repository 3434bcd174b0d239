"""``turbotrt tune``: measures the legal configs of the tunable kernels on the GPU at hand, at a model's sizes.

An RTX part is tuned on a Hopper GPU too, by proxy (proxy.py): among the configs that are legal on the part itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Grid

from exporter.bench.block_graph import OpCall, block_graph
from exporter.bench.device import median_ms, prepared
from exporter.bench.kernels import MeasuringInterpreter, run_graph
from exporter.bench.proxy import Bench, bench_on
from exporter.bench.synthetic import block_inputs, block_weights
from exporter.gpus import GpuSpec
from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from plugins.configs import Table, dumped, merged, trying
from runtime.atomic import told, write_atomic
from runtime.report import Report

MARGIN = 0.98  # a new config must take less than this of the old one's time: noise should not churn the table


@dataclass(frozen=True)
class Tuned:
    """One op call tuned: ms with the config in force and with the best one, the best one's fields and size keys."""

    call: OpCall
    kernel: str
    keys: tuple[str, ...]
    old_ms: float
    new_ms: float
    fields: dict[str, Any]

    @property
    def better(self) -> bool:
        return self.new_ms < MARGIN * self.old_ms


def tune_call(call: OpCall, bench: Bench, time: Callable[[bytes], float], progress: Report) -> Tuned | None:
    """Measure every candidate of the kernel in the op's folder; None where it has none. ``time``: plan bytes → ms."""
    if not call.op.tunable:
        return None
    old = time(bench.fresh_plan(call))
    timed: list[tuple[float, dict[str, Any]]] = []
    keys: set[str] = set()
    kernel = call.op.folder
    offered = list(importlib.import_module(f"plugins.{kernel}.kernel").candidates(bench.sm))
    with progress.stage(call.label) as update:
        for index, config in enumerate(offered):
            with trying(kernel, config) as trial:
                data = bench.fresh_plan(call)
            keys |= trial.keys
            timed.append((time(data), asdict(config)))
            update(index + 1, len(offered))
    ms, fields = min(timed, key=lambda entry: entry[0])
    return Tuned(call, kernel, tuple(sorted(keys)), old, ms, fields)


def updated(old: Table, tuned: Sequence[Tuned], sm: int) -> Table:
    """The table with what got better; where calls share a size key, the one that takes longest decides."""
    new = old
    for one in sorted(tuned, key=lambda t: t.old_ms):
        if one.better:
            new = merged(new, one.kernel, sm, dict.fromkeys(one.keys, one.fields))
    return new


def tune(model: ModelSpec, gpu: GpuSpec, options: BlockOptions, progress: Report) -> list[Tuned]:
    """Tune every distinct call of the model's block on the present GPU, on the inputs it gets in a block.

    Raises UserError where the present GPU can stand for the named one in no way.
    """
    bench = bench_on(gpu)
    found: list[Tuned] = []

    def measure(call: OpCall, inputs: Sequence[torch.Tensor]) -> float:
        tuned = tune_call(call, bench, lambda plan: median_ms(prepared(plan, inputs)[0]), progress)
        if tuned is not None:
            found.append(tuned)
        return 0.0

    graph = MeasuringInterpreter(block_graph(model, options, model.tokens()), bench, measure)
    with torch.inference_mode():
        inputs = block_inputs(model, 0, "cuda", model.latent_shape())
        run_graph(graph, inputs, block_weights(model, options, 1, "cuda"))
    return found


def write(path: Path, content: Table) -> None:
    """Replace the table file at once. Raises UserError where it cannot be written."""
    with told(path):
        write_atomic(path, dumped(content).encode())


def show_tuned(tuned: Sequence[Tuned], console: Console) -> None:
    """What was tried and what it gave."""
    grid = Grid(title="best of the legal configs", caption=f"kept where it takes less than {MARGIN:.0%} of the time")
    for heading in ("op", "config"):
        grid.add_column(heading)
    for heading in ("ms before", "ms best", ""):
        grid.add_column(heading, justify="right", no_wrap=True)
    for one in tuned:
        fields = " ".join(f"{name}={value}" for name, value in one.fields.items())
        grid.add_row(
            one.call.label, fields, f"{one.old_ms:.3f}", f"{one.new_ms:.3f}", "kept" if one.better else "as before"
        )
    console.print(grid)
