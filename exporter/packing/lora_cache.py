"""A bundle with LoRAs added to its weights, for one run: packed once and kept by what they were made of.

Engines take weights as inputs, so nothing else of the bundle changes: what is run is a folder of links to its files,
with other weights and a manifest that lists them. The user's cache keeps each packed file beside what the runtime
verifies it by, up to a limit of bytes; the ones that were used longest ago go first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from exporter.checkpoint.hub import resolve
from exporter.checkpoint.lora import load_loras
from exporter.loras import Lora, Loras
from exporter.models import ModelSpec, model_named
from exporter.networks.dit.weights import FORMAT_VERSION
from exporter.packing.adapted import AdaptedCheckpoint, float_table
from exporter.packing.dit import files_key
from exporter.packing.packed_checkpoint import open_packed
from exporter.packing.packer import pack
from plugins.errors import UserError
from plugins.temporary import scratch
from plugins.user_cache import cache_folder
from runtime.atomic import told, write_atomic
from runtime.bundle import LOCK_NAME, MANIFEST_NAME, FileInfo, Manifest, file_info, load_manifest, write_manifest
from runtime.byte_sizes import gigabytes
from runtime.checks import check_weights
from runtime.input_files import read_input
from runtime.report import Report

FOLDER = "loras"
DEFAULT_LIMIT = 60 * 10**9
_MAX_RECORD = 1 << 16  # bytes


@dataclass(frozen=True)
class KeptWeights:
    """A packed file of the cache, and what it is verified by."""

    path: Path
    info: FileInfo


@contextmanager
def bundle_with(folder: Path, loras: Loras, report: Report, *, limit: int = DEFAULT_LIMIT) -> Iterator[Path]:
    """A bundle like the one in ``folder``, whose weights have the LoRAs in them. Raises UserError."""
    manifest = load_manifest(folder)
    found = weights_with(folder, manifest, loras, report, limit=limit)
    with scratch() as view:
        for entry in folder.iterdir():
            if entry.name not in (MANIFEST_NAME, LOCK_NAME):
                (view / entry.name).symlink_to(entry.absolute())
        for weights in found.values():
            (view / weights.path.name).symlink_to(weights.path.absolute())
        names = {expert: weights.path.name for expert, weights in found.items()}
        listed = {names[expert]: weights.info for expert, weights in found.items()}
        changed = msgspec.structs.replace(
            manifest, weights={**manifest.weights, **names}, files={**manifest.files, **listed}
        )
        write_manifest(view, changed)
        yield view


def weights_with(
    folder: Path, manifest: Manifest, loras: Loras, report: Report, *, limit: int
) -> dict[str, KeptWeights]:
    """Expert → the packed file that has the LoRAs in it; experts that none changes are left out. Raises UserError."""
    model = model_named(manifest.model.name)
    experts = [expert for expert in model.experts if loras.of(expert)]
    if (reason := check_weights(folder, manifest, experts)) is not None:
        raise UserError(reason)
    found = {expert: _one(folder, manifest, model, expert, loras, report) for expert in experts}
    _evict(limit, keep=[weights.path for weights in found.values()], report=report)
    return found


def _one(folder: Path, manifest: Manifest, model: ModelSpec, expert: str, loras: Loras, report: Report) -> KeptWeights:
    name, chosen = manifest.weights[expert], loras.of(expert)
    base = open_packed(folder / name, model, manifest.sampler.linear)
    named = [(resolve(lora.source), lora.strength) for lora in chosen]
    loaded = load_loras(named, float_table(base), partial=loras.partial, note=report.note)
    facts = f"{manifest.files[name].sha256} {loaded.title} {FORMAT_VERSION}\n"
    path = cache_folder() / FOLDER / f"{files_key(facts, _titles(chosen), loaded.files, report)}.safetensors"
    if (info := _known(path)) is not None:
        os.utime(path)  # used now
        return KeptWeights(path, info)
    with told(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with report.stage(f"add {loaded.title} to {name}") as update:
        rounding = pack(AdaptedCheckpoint(base, loaded), model, path, linear=manifest.sampler.linear, progress=update)
    if rounding is not None:
        report.note(f"{name} with {loaded.title}: INT8 once more, {rounding:.2%} (RMS) away from the sum")
    info = file_info(path)
    with told(_record(path)):
        write_atomic(_record(path), msgspec.json.encode(info))
    return KeptWeights(path, info)


def _titles(loras: Sequence[Lora]) -> str:
    return ", ".join(lora.source for lora in loras)


def _record(path: Path) -> Path:
    return path.with_suffix(".json")


def _known(path: Path) -> FileInfo | None:
    """What a kept file is verified by; None where there is none, or half of it."""
    try:
        info = msgspec.json.decode(read_input(_record(path), _MAX_RECORD, "a record of the cache"), type=FileInfo)
        return info if path.stat().st_size == info.bytes else None
    except (OSError, UserError, msgspec.MsgspecError):
        return None


def _evict(limit: int, keep: Sequence[Path], report: Report) -> None:
    """Remove what was used longest ago until the rest fits; what this run uses stays."""
    files = sorted((cache_folder() / FOLDER).glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        if total <= limit:
            return
        if path not in keep:
            size = path.stat().st_size
            _record(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            report.note(f"{path.name}: removed from the cache of LoRAs, {gigabytes(size)}")
            total -= size
