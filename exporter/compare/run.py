"""One comparison from its spec to its files: levels, sweep, RunResults, report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import save_json
from torch import Tensor

from exporter.compare.levels import BlockLevels, compare_steps, compare_videos, quietly
from exporter.compare.report.page import write_report
from exporter.compare.roster import Roster, open_roster
from exporter.compare.runners import BLOCK_OUTPUT
from exporter.compare.spec import CompareSpec, Comparison
from exporter.compare.sweep import check_sweep, sweep
from exporter.compare.video import VIDEO, why_no_video
from plugins.errors import UserError
from plugins.torch_dtypes import torch_dtype
from runtime.atomic import atomic_path, told, write_atomic
from runtime.report import Report
from runtime.versions import installed_versions

_TOOLS = ("turbotrt", "torch", "triton", "onnx", "polygraphy", "tensorrt-rtx", "tensorrt", "numpy")
INPUTS, OUTPUTS = "block_inputs.json", "block_outputs.json"
MAX_RESULTS = 2**30  # bytes of tensors in one JSON file
SUMMARY = "comparison.json"
REPORT = "report.html"


def compare(spec: CompareSpec, progress: Report) -> Comparison:
    """Compare what this machine can run, and write results and report into ``spec.out``. Raises UserError."""
    roster = open_roster(spec, progress)
    check_sweep(roster, spec)
    if no_video := why_no_video(spec, roster):
        roster.left_out[VIDEO] = no_video
    found = Comparison(left_out=roster.left_out, notes=roster.notes)
    for name, reason in found.left_out.items():
        progress.note(f"left out: {name} {reason}")
    try:
        with _folder(spec.out):
            _compare(spec, roster, found, no_video is None, progress)
    finally:
        for machine in roster.machines.values():
            machine.close()
    return found


def _compare(spec: CompareSpec, roster: Roster, found: Comparison, video: bool, progress: Report) -> None:
    """Fill ``found`` and write the files."""
    results = compare_steps(roster, found, progress)
    if video:
        results[VIDEO] = compare_videos(roster, spec, results["free"], found, progress)
    blocks = BlockLevels(roster, spec.block_step, _tokens_before(roster, results["steps"], spec.block_step))
    blocks.run(found, progress)
    feed, results["ops"] = blocks.inspect(found, progress)
    found.facts = facts(spec, roster)
    if spec.sweep:
        found.sweep = sweep(roster, spec, progress)
    with progress.stage("write results"):
        _save(spec.out, results, progress)
        _save_block(spec.out, roster, spec.block_step, feed, results["ops"])
        with told(spec.out / SUMMARY):
            write_atomic(spec.out / SUMMARY, summary(found))
        write_report(spec.out / REPORT, found)


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """The folder for the report, there before the work begins; where that ends early, what was made for nothing goes.

    Raises UserError where there can be none.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be a folder for the report.", got=error.strerror) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # one that holds something stays, and those around it
            for folder in made:
                folder.rmdir()
        raise


def _tokens_before(roster: Roster, steps: RunResults, step: int) -> Tensor:
    """The reference's latents before a step."""
    return roster.scene.start if step == 0 else steps[roster.reference][step - 1]["tokens"]


def _save(out: Path, results: Mapping[str, RunResults], progress: Report) -> None:
    """<name>.json for each of the results: Polygraphy's RunResults."""
    for name, result in results.items():
        size = sum(tensor.nbytes for _, runs in result.items() for run in runs for _, tensor in run.items())
        if size > MAX_RESULTS:
            (out / f"{name}.json").unlink(missing_ok=True)
            progress.note(f"{name}.json is not written: its tensors are {size / 1e9:.1f} GB")
            continue
        _written(out / f"{name}.json", result.save)


def _save_block(out: Path, roster: Roster, step: int, feed: Mapping[str, Tensor], results: RunResults) -> None:
    """The inspected block as its engine takes and gives it, for ``polygraphy run --load-inputs --load-outputs``."""
    stage = roster.manifest.stage("block")
    weights = roster.deployed(roster.scene.steps[step].expert, "block", int(feed["layer"]))
    named = {**feed, **weights}
    inputs = {info.name: named[info.name].to(torch_dtype(info.dtype)) for info in stage.inputs}
    _written(out / INPUTS, partial(save_json, [inputs]))
    outputs = RunResults()
    for name, iterations in results.items():
        if name in roster.machines:
            given = {stage.outputs[0].name: iterations[0][BLOCK_OUTPUT]}
            outputs.append((name, [IterationResult(given, iterations[0].runtime, name)]))
    _written(out / OUTPUTS, outputs.save)


def _written(path: Path, save: Callable[[str], object]) -> None:
    """Let Polygraphy write a file."""
    with told(path), atomic_path(path) as temporary:
        quietly(save, str(temporary))


def facts(spec: CompareSpec, roster: Roster) -> dict[str, str]:
    """Versions and settings, as the report's table shows them."""
    manifest, model, scene = roster.manifest, roster.model, roster.scene
    sampler = manifest.sampler
    count, height, width = scene.shape
    at = ", ".join(f"{step.t:.3f}" for step in scene.steps)
    topk = "" if sampler.dense else f", top-k {sampler.topk_milli / 1000:g}"
    found = {
        "model": model.name,
        "bundle": f"{spec.bundle.name} for {manifest.gpu.name} (sm_{manifest.gpu.sm}, {manifest.gpu.flavour})",
        "checkpoint": spec.checkpoint or "none",
        "attention, Linears": f"{sampler.attention}{topk}; {sampler.linear}",
        "video": f"{8 * width}×{8 * height}×{4 * count - 3}, L = {scene.tokens:,} tokens",
        "steps": f"{len(scene.steps)} at t = {at}, {'ODE' if spec.ode else 'SDE'}, seed {spec.seed}",
        "blocks and ops at": f"step {spec.block_step + 1}",
        "text": "random" if spec.embeds is None else str(spec.embeds),
        "run on": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "made by": ", ".join(f"{name} {number}" for name, number in manifest.tools.items()),
        "compared by": ", ".join(f"{name} {number}" for name, number in installed_versions(_TOOLS).items()),
    }
    return found


def summary(found: Comparison) -> bytes:
    """Everything but the images, as JSON; infinities and NaN become null."""
    plain: dict[str, Any] = {
        "passed": found.passed,
        "rows": [{**asdict(row), "passed": row.passed} for row in found.rows],
        "left_out": found.left_out,
        "notes": found.notes,
        "facts": found.facts,
        "seconds": found.seconds,
        "inspected_block": found.inspected,
        "rounding_alone": found.rounding,
        "rounding_accumulated": found.accumulated,
        "sweep": None if found.sweep is None else asdict(found.sweep),
    }
    return msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n"
