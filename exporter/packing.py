"""A ``--checkpoint`` value → one packed file for each expert, and a bundle that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from exporter.models import ModelSpec
from exporter.progress import Progress
from exporter.weights import LinearMode
from plugins.errors import UserError
from runtime.bundle import MANIFEST_NAME, Manifest, file_info, load_manifest, write_manifest


@dataclass(frozen=True)
class PackedWeights:
    """Where each expert's packed weights went, and whether they hold proj_l."""

    files: Mapping[str, Path]
    has_proj_l: bool


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


def pack_checkpoint(
    checkpoint: str,
    model: ModelSpec,
    out: Path,
    *,
    linear: LinearMode,
    allow_missing_proj_l: bool,
    progress: Progress,
) -> PackedWeights:
    """Pack every expert of a checkpoint. All are opened and checked before the first byte is written. UserError."""
    from exporter.checkpoint.experts import expert_paths
    from exporter.checkpoint.reader import open_checkpoint
    from exporter.pack import pack

    out.parent.mkdir(parents=True, exist_ok=True)
    readers = {
        expert: open_checkpoint(path, model, allow_missing_proj_l=allow_missing_proj_l)
        for expert, path in expert_paths(checkpoint, model).items()
    }
    have = {expert: reader.has_proj_l for expert, reader in readers.items()}
    if len(set(have.values())) != 1:
        raise UserError(
            "One expert holds proj_l and the other does not.",
            expected="two checkpoints of one training",
            got=", ".join(f"{expert}: {'yes' if has else 'no'}" for expert, has in have.items()),
        )
    files = weight_paths(out, model)
    for expert, reader in readers.items():
        with progress.stage(f"pack {files[expert].name}") as update:
            pack(reader, model, files[expert], linear=linear, progress=update)
    has_proj_l = all(have.values())
    if not has_proj_l:
        progress.note("The checkpoint has no proj_l: it is packed as zero, which means no linear branch.")
    return PackedWeights(files, has_proj_l)


def add_to_bundle(folder: Path, manifest: Manifest, packed: PackedWeights) -> Manifest:
    """Rewrite the bundle's manifest so that it lists these weights, and return it."""
    added = msgspec.structs.replace(
        manifest,
        files={**manifest.files, **{path.name: file_info(path) for path in packed.files.values()}},
        weights={expert: path.name for expert, path in packed.files.items()},
        has_proj_l=packed.has_proj_l,
    )
    write_manifest(folder, added)
    return added
