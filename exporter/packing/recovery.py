"""What the bundle about to be replaced still offers: its manifest, and its weights even where the manifest is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.checkpoint.source import TensorMeta
from exporter.networks.dit.weights import FORMAT_VERSION, packed_tensors
from exporter.packing.dit import weight_paths
from exporter.spec import ExportSpec
from plugins.errors import UserError
from runtime.bundle import MANIFEST_NAME, FileInfo, Manifest, file_info, load_manifest
from runtime.report import Report


@dataclass(frozen=True)
class KeptWeights:
    """Weights that stay in the bundle: expert → file, the files' entries, and whether they hold proj_l."""

    experts: dict[str, str]
    files: dict[str, FileInfo]
    has_proj_l: bool | None


def previous_manifest(folder: Path, report: Report) -> Manifest | None:
    """The bundle's manifest there now; None, with a note, if it is damaged: the bundle is then made anew."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        return load_manifest(folder)
    except UserError as error:
        report.note(f"{str(error).splitlines()[0]} The bundle is made anew.")
        return None


def kept_weights(spec: ExportSpec, name: str, previous: Manifest | None, report: Report) -> KeptWeights:
    """The old bundle's weights that the new engines can run: as its manifest lists them, else by their own headers.

    What cannot be kept is said. A file that no manifest lists is hashed anew, which does not prove its contents.
    """
    listed = previous.weights if previous is not None else {}
    experts: dict[str, str] = {}
    files: dict[str, FileInfo] = {}
    proj_l: list[bool | None] = []
    for expert, path in weight_paths(spec.bundle_dir / name, spec.model).items():
        file = spec.bundle_dir / listed.get(expert, path.name)
        if not file.is_file():
            continue
        fits = previous is not None and (previous.model.name, previous.sampler.linear) == _wanted(spec)
        if previous is not None and expert in listed and fits:
            files[file.name], has = previous.files[file.name], previous.has_proj_l
        else:
            found = _header_of(file)
            if (why := _unusable(found, spec)) is not None:
                report.note(f"{file.name}: not {'kept' if expert in listed else 'listed'}, {why}")
                continue
            report.note(f"{file.name}: no manifest lists it; kept for what its header says, and hashed anew")
            files[file.name], has = file_info(file), found.metadata.get("has_proj_l") == "true" if found else None
        experts[expert] = file.name
        proj_l.append(has)
    return KeptWeights(experts, files, proj_l[0] if len(set(proj_l)) == 1 else None)


def _wanted(spec: ExportSpec) -> tuple[str, str]:
    return spec.model.name, spec.linear


def _header_of(file: Path) -> SafetensorsFile | None:
    try:
        return SafetensorsFile(file)
    except UserError:
        return None


def _unusable(found: SafetensorsFile | None, spec: ExportSpec) -> str | None:
    """Why the new engines cannot run these weights, or None."""
    if found is None:
        return "it is not a whole safetensors file"
    said = tuple(found.metadata.get(key) for key in ("model", "linear", "format_version"))
    wanted = (*_wanted(spec), FORMAT_VERSION)
    if said != wanted:
        return f"its header says {', '.join(map(str, said))}; this bundle is for {', '.join(wanted)}"
    table = {n: TensorMeta(t.shape, t.dtype) for n, t in packed_tensors(spec.model, spec.linear).items()}
    return None if found.tensors == table else f"its tensors are not those of {spec.model.name}"
