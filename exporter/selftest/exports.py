"""The part "export": a variant's bundle, made as a user would make it, or found where one was kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from exporter.models import ModelSpec
from exporter.selftest.rows import Case
from exporter.selftest.step import Finding, Setting, Step, variant_of
from plugins.errors import UserError
from runtime.bundle import load_manifest
from runtime.report import Silent
from runtime.tensor_files import write_tensors


def steps(setting: Setting, case: Case) -> Iterator[Step]:
    """One step, which leaves the bundle in its place."""
    yield Step("found" if setting.found else "exported", partial(_found if setting.found else _export, setting, case))


def _export(setting: Setting, case: Case) -> Iterator[Finding]:
    from exporter.export import export_bundle

    variant, began = variant_of(case), time.monotonic()
    out = setting.out(variant)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = write_checkpoints(out, variant.model) if variant.weighted else None
    spec = variant.spec(setting.target, out, checkpoint, onnx_only=setting.onnx_only)
    folder = export_bundle(spec, Silent())
    engines = [stage.engine for stage in load_manifest(folder).stages if stage.engine is not None]
    what = f"{len(engines)} engines" if engines else "graphs and plans, no engines"
    yield Finding("exported", figures={"seconds": time.monotonic() - began}, detail=what)


def _found(setting: Setting, case: Case) -> Iterator[Finding]:
    folder = setting.bundle(variant_of(case))
    if not folder.exists():
        yield Finding("found", detail=f"{folder} is not there", skipped=True)
        return
    manifest = load_manifest(folder)
    if manifest.gpu.sm != setting.target.sm:
        raise UserError(
            f"{folder} is for another GPU.", expected=f"sm_{setting.target.sm}", got=f"sm_{manifest.gpu.sm}"
        )
    yield Finding("found", detail=f"made by {', '.join(f'{k} {v}' for k, v in manifest.tools.items())}")


def write_checkpoints(folder: Path, model: ModelSpec) -> str:
    """Random checkpoints of all experts, as --checkpoint names them; the same bytes on every machine, without torch."""
    paths = [folder / f"{expert}.safetensors" for expert in model.experts]
    for seed, path in enumerate(paths):
        write_checkpoint(path, model, seed)
    return ",".join(map(str, paths))


def write_checkpoint(path: Path, model: ModelSpec, seed: int) -> None:
    """fp32: matrices of deviation 1/√K, norm weights around 1, small biases, gates that let half of a block through."""
    from exporter.checkpoint.table import checkpoint_tensors

    random = np.random.Generator(np.random.Philox(seed))
    made = {}
    for name, want in checkpoint_tensors(model).items():
        values = random.standard_normal(want.shape, dtype=np.float32)
        if len(want.shape) == 2:
            values *= np.float32(want.shape[1] ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            values = 1 + np.float32(0.1) * values
        else:
            values *= np.float32(0.1 if name.endswith("modulation") else 0.02)
        if name.startswith("blocks.") and name.endswith("modulation"):
            values.reshape(6, -1)[2::3] += np.float32(0.5)
        made[name] = values
    write_tensors(path, made, {})
