"""Quality against time over shares of kept key blocks: how sparse can attention be?

Every share runs free from the same noise. The reference keeps every key block: the checkpoint in fp32, or without one
the oracle. On a GPU the time is measured; without one it is estimated for the bundle's.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from exporter.bench.estimate import step_ms
from exporter.compare.machines.machine import BlockInput, Machine, embedded, run_free
from exporter.compare.machines.plan_ops import PlanOps
from exporter.compare.machines.torch_machines import PlainMachine, StageMachine
from exporter.compare.metrics import distance, frame_distance
from exporter.compare.roster import Roster
from exporter.compare.scene import frames
from exporter.compare.spec import CompareSpec, Sweep, SweepPoint
from exporter.gpus import GPUS
from plugins.errors import UserError
from plugins.torch_op import device_sm
from runtime.bundle import Manifest
from runtime.report import Report

FULL = 1000
_TIMED_RUNS = 3


def check_sweep(roster: Roster, spec: CompareSpec) -> None:
    """Raise UserError where there is nothing to sweep."""
    if spec.sweep and roster.manifest.sampler.dense:
        raise UserError("Dense attention keeps every key block: --top-k has nothing to sweep.", remedy="drop --top-k")
    if spec.sweep and _swept(roster) is None:
        raise UserError(
            "--top-k needs a runner whose share can be changed.",
            expected="plans or quantized",
            got=", ".join(roster.machines),
        )


def sweep(roster: Roster, spec: CompareSpec, progress: Report) -> Sweep:
    """One point for each share."""
    candidate = _swept(roster)
    if candidate is None:
        raise ValueError("check_sweep comes first")
    points = []
    untimed = None if candidate.device.type == "cuda" else _not_estimated(roster.manifest)
    with progress.stage(f"top-k sweep with {candidate.name}") as update:
        want = run_free(_reference(roster), roster.model.layers, roster.scene)
        for index, milli in enumerate(spec.sweep):
            machine = candidate.with_options(replace(candidate.options, topk_milli=milli))
            got = run_free(machine, roster.model.layers, roster.scene)
            points.append(_point(roster, milli, got, want, None if untimed else _block_seconds(roster, machine)))
            update(index + 1, len(spec.sweep))
    if candidate.device.type == "cuda":
        return Sweep(tuple(points), torch.cuda.get_device_name(), estimated=False)
    return Sweep(tuple(points), roster.manifest.gpu.name, estimated=True, untimed=untimed)


def _not_estimated(manifest: Manifest) -> str | None:
    """Why the time cannot be estimated for the bundle's GPU, or None."""
    if manifest.gpu.name not in GPUS:
        return f"there is no GPU here, and none named {manifest.gpu.name} in the table to estimate for"
    if manifest.sampler.linear != "int8":
        return "there is no GPU here, and an estimate covers INT8 Linears only"
    return None


def _swept(roster: Roster) -> StageMachine | None:
    """The compiled plans where they run, else the quantized model: a graph or an engine has its share built in."""
    for name in ("plans", "quantized"):
        machine = roster.machines.get(name)
        if isinstance(machine, StageMachine):
            compiled = PlanOps((), 0, device_sm()) if name == "plans" else None  # the bundle's have their share too
            return machine.with_options(machine.options, compiled)
    return None


def _reference(roster: Roster) -> Machine:
    first = roster.machines[roster.reference]
    if isinstance(first, PlainMachine):
        return first.with_topk(FULL)
    return roster.oracle.with_options(replace(roster.oracle.options, topk_milli=FULL))


def _point(roster: Roster, milli: int, got: Tensor, want: Tensor, seconds: float | None) -> SweepPoint:
    shape = roster.scene.shape
    measured = [frame_distance(*pair) for pair in zip(frames(got, shape), frames(want, shape), strict=True)]
    return SweepPoint(
        milli,
        distance(got, want).relative_l2,
        sum(one.psnr_db for one in measured) / len(measured),
        sum(one.ssim for one in measured) / len(measured),
        seconds,
    )


def _block_seconds(roster: Roster, machine: StageMachine) -> float:
    """Seconds of one step's blocks, estimated where there is no CUDA device.

    Measured: block 0 after a run that warms up, times the layers.
    """
    scene, device = roster.scene, machine.device
    if device.type != "cuda":
        return step_ms(roster.model, GPUS[roster.manifest.gpu.name], machine.options, scene.tokens) / 1e3
    made = embedded(machine, scene, 0, scene.start)
    cos, sin = (table.to(device) for table in scene.tables())
    run = machine.loaded_block(scene.steps[0].expert, 0, BlockInput(made.x, made.context, made.e0, cos, sin))
    run()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(_TIMED_RUNS):
        run()
    torch.cuda.synchronize(device)
    return roster.model.layers * (time.perf_counter() - started) / _TIMED_RUNS
