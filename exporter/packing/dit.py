"""A ``--checkpoint`` value → one packed file for each expert, and a bundle that lists them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.bundle_lock import bundle_turn
from exporter.loras import NO_LORAS, Lora, Loras
from exporter.models import ModelSpec
from exporter.networks.dit.options import BARE
from exporter.networks.dit.weights import FORMAT_VERSION
from exporter.networks.weight_spec import LinearMode
from plugins.errors import UserError
from runtime.atomic import check_place
from runtime.bundle import (
    MANIFEST_NAME,
    FileInfo,
    Manifest,
    file_info,
    load_manifest,
    sha256_of,
    verify_file,
    write_manifest,
)
from runtime.report import Report

if TYPE_CHECKING:
    from exporter.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class PackedWeights:
    """Where each expert's packed weights went, whether they hold proj_l, and beside a bundle their manifest entries."""

    files: Mapping[str, Path]
    has_proj_l: bool
    entries: Mapping[str, FileInfo]


def weight_paths(out: Path, model: ModelSpec) -> dict[str, Path]:
    """Expert → file for an ``--out`` value: itself for one expert, <stem>-<expert><suffix> for several."""
    if len(model.experts) == 1:
        return {model.experts[0]: out}
    return {expert: out.with_name(f"{out.stem}-{expert}{out.suffix}") for expert in model.experts}


def bundle_of(out: Path, model: ModelSpec, linear: LinearMode | None) -> Manifest | None:
    """The manifest beside ``out``, or None. Raises UserError if that bundle runs other weights than these."""
    if not (out.parent / MANIFEST_NAME).is_file():
        return None
    manifest = load_manifest(out.parent)
    if manifest.model.name != model.name:
        raise UserError(f"{out.parent} is a bundle of another model.", expected=manifest.model.name, got=model.name)
    if linear is not None and linear != manifest.sampler.linear:
        raise UserError(
            f"The engines in {out.parent} were built for other Linears.",
            expected=f"--linear {manifest.sampler.linear}",
            got=f"--linear {linear}",
        )
    return manifest


def pack_into(
    checkpoint: str,
    model: ModelSpec,
    out: Path,
    *,
    linear: LinearMode | None,
    attention: str | None,
    progress: Report,
    loras: Loras = NO_LORAS,
) -> tuple[PackedWeights, Manifest | None]:
    """Pack a checkpoint's experts; in a bundle, whose own choices are the defaults, they are listed in its manifest.

    The folder is this process's alone meanwhile. Raises UserError.
    """
    from exporter.checkpoint.download import tell_downloads
    from exporter.checkpoint.experts import look_for_checkpoint

    with bundle_turn(out.parent, progress.note):
        bundle = bundle_of(out, model, linear)
        chosen = attention or (bundle.sampler.attention if bundle else "sagesla")
        linear = linear or (bundle.sampler.linear if bundle else "int8")
        tell_downloads(
            look_for_checkpoint(checkpoint, model, progress.note, linear=linear, loras=loras) or (), progress.note
        )
        packed = pack_checkpoint(
            checkpoint,
            model,
            out,
            linear=linear,
            allow_missing_proj_l=chosen in BARE,
            progress=progress,
            bundle=bundle,
            loras=loras,
        )
        return packed, None if bundle is None else add_to_bundle(out.parent, bundle, packed, progress)


def pack_checkpoint(
    checkpoint: str,
    model: ModelSpec,
    out: Path,
    *,
    linear: LinearMode,
    allow_missing_proj_l: bool,
    progress: Report,
    bundle: Manifest | None = None,
    loras: Loras = NO_LORAS,
) -> PackedWeights:
    """Pack every expert of a checkpoint. All are opened and checked before the first byte is written. UserError.

    Beside the manifest of a bundle, a file that was packed from the same bytes in the same way is kept.
    """
    from exporter.checkpoint.hub import pinned
    from exporter.packing.packer import pack

    files = weight_paths(out, model)
    for file in files.values():
        check_place(file)
    allowed = allow_missing_proj_l
    readers = open_experts(
        checkpoint, model, linear=linear, allow_missing_proj_l=allowed, loras=loras, note=progress.note
    )
    entries: dict[str, FileInfo] = {}
    for expert, reader in readers.items():
        file = files[expert]
        key = None if bundle is None else packing_key(reader, model, linear, progress)
        if bundle is not None and is_current(file, bundle, key, progress):
            progress.note(f"{file.name}: unchanged, kept")
            entries[file.name] = bundle.files[file.name]
            continue
        with progress.stage(f"pack {file.name}") as update:
            rounding = pack(reader, model, file, linear=linear, progress=update)
        if rounding is not None:
            progress.note(
                f"{file.name}: the LoRA changes INT8 matrices, which were dequantized and quantized again; "
                f"rounded once more they are {rounding:.2%} (RMS) away from the sum"
            )
        if bundle is not None:
            entries[file.name] = file_info(file, inputs=key, source=pinned(reader.path))
    has_proj_l = all(reader.has_proj_l for reader in readers.values())
    if not has_proj_l:
        progress.note("The checkpoint has no proj_l: it is packed as zero, which means no linear branch.")
    return PackedWeights(files, has_proj_l, entries)


def open_experts(
    checkpoint: str,
    model: ModelSpec,
    *,
    linear: LinearMode,
    allow_missing_proj_l: bool,
    note: Callable[[str], None],
    loras: Loras = NO_LORAS,
) -> dict[str, Checkpoint]:
    """Every expert's checkpoint and its LoRAs, with all checks that need no more than headers. Raises UserError."""
    from exporter.checkpoint.experts import expert_paths
    from exporter.checkpoint.reader import open_checkpoint
    from exporter.checkpoint.table import check_linear

    readers = {
        expert: open_checkpoint(path, model, allow_missing_proj_l=allow_missing_proj_l)
        for expert, path in expert_paths(checkpoint, model).items()
    }
    for reader in readers.values():
        check_linear(reader.path, linear, quantized=reader.quantized)
    have = {expert: reader.has_proj_l for expert, reader in readers.items()}
    if len(set(have.values())) != 1:
        raise UserError(
            "One expert holds proj_l and the other does not.",
            expected="two checkpoints of one training",
            got=", ".join(f"{expert}: {'yes' if has else 'no'}" for expert, has in have.items()),
        )
    return {expert: _with_loras(reader, loras.of(expert), loras.partial, note) for expert, reader in readers.items()}


def _with_loras(reader: Checkpoint, loras: Sequence[Lora], partial: bool, note: Callable[[str], None]) -> Checkpoint:
    from exporter.checkpoint.hub import resolve
    from exporter.checkpoint.lora import load_loras
    from exporter.packing.adapted import AdaptedCheckpoint, float_table

    if not loras:
        return reader
    named = [(resolve(lora.source), lora.strength) for lora in loras]
    return AdaptedCheckpoint(reader, load_loras(named, float_table(reader), partial=partial, note=note))


def packing_key(reader: Checkpoint, model: ModelSpec, linear: LinearMode, progress: Report) -> str:
    """Hash of all that decides a packed file's bytes: the checkpoint's files and the way they are packed."""
    loras = f" {reader.loras}" if reader.loras else ""
    return files_key(f"{model.name} {linear} {FORMAT_VERSION}{loras}\n", reader.path.name, reader.files, progress)


def files_key(facts: str, title: str, files: Sequence[Path], progress: Report) -> str:
    """Hash of some facts and of the contents of files."""
    digest = hashlib.sha256(facts.encode())
    total, done = sum(path.stat().st_size for path in files), 0
    with progress.stage(f"hash {title}") as update:

        def read(count: int) -> None:
            nonlocal done
            done += count
            update(done, total)

        for path in files:
            digest.update(sha256_of(path, read).encode())
    return digest.hexdigest()


def is_current(file: Path, bundle: Manifest, key: str | None, progress: Report) -> bool:
    """Whether the bundle's file was packed from these inputs and is still what the manifest says."""
    info = bundle.files.get(file.name)
    if info is None or info.inputs != key:
        return False
    with progress.stage(f"verify {file.name}"):
        return verify_file(file.parent, file.name, info) is None


def add_to_bundle(folder: Path, manifest: Manifest, packed: PackedWeights, progress: Report) -> Manifest:
    """Rewrite the bundle's manifest so that it lists these weights, and return it.

    A one-file engine of other weights than these is removed: nothing would tell that it does not hold the new ones.
    """
    files, stages = dict(manifest.files), manifest.stages
    for expert, path in packed.files.items():
        info = packed.entries[path.name]
        if (old := files.get(path.name)) is None or old.sha256 != info.sha256:
            stages = tuple(stage for stage in stages if stage.expert != expert)
        files[path.name] = info
    for name in set(manifest.weights.values()) - set(packed.entries):  # stays on disk, and is the bundle's no more
        files.pop(name, None)
    for stage in set(manifest.stages) - set(stages):
        progress.note(f"{stage.engine}: removed, it holds the old weights")
        for name in filter(None, (stage.engine, stage.onnx)):
            del files[name]
            (folder / name).unlink(missing_ok=True)
    added = msgspec.structs.replace(
        manifest,
        files=files,
        stages=stages,
        weights={expert: path.name for expert, path in packed.files.items()},
        has_proj_l=packed.has_proj_l,
    )
    write_manifest(folder, added)
    return added
