"""The packed weights of text encoder and decoders, and the tokenizer: made from checkpoints, or kept from before."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from exporter.checkpoint.download import Download
from exporter.checkpoint.hub import look_for, pinned, resolve, resolve_file
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.packing.component import (
    ComponentCheckpoint,
    ComponentFormat,
    component_metadata,
    component_table,
    pack_component,
)
from exporter.packing.dit import files_key, is_current
from exporter.packing.formats import component_format
from exporter.releases import OFFICIAL, TOKENIZER, is_official, official_component
from exporter.spec import ExportSpec
from plugins.errors import UserError
from runtime.atomic import atomic_path, told
from runtime.bundle import FileInfo, Manifest, MediaComponent, file_info, write_manifest
from runtime.report import Report

TOKENIZER_NAME = "tokenizer.json"
_MEDIA: tuple[MediaComponent, ...] = get_args(MediaComponent)


def weights_name(component: MediaComponent) -> str:
    """The bundle's file of a component's weights."""
    return f"{component}.safetensors"


def check_media(spec: ExportSpec, report: Report) -> list[Download]:
    """What text encoder, VAE and tokenizer still have to fetch. Raises UserError for what is not the model's.

    Checkpoints on this machine are checked by their headers alone.
    """
    downloads: list[Download] = []
    for component, checkpoint in _asked(spec).items():
        found = look_for(checkpoint, report.note, part=component)
        if found is None:
            ComponentCheckpoint(resolve(checkpoint), _format(spec, component))
        downloads += found or ()
    if spec.tokenizer is not None:
        downloads += look_for(spec.tokenizer, report.note, TOKENIZER_NAME) or ()
    return downloads


def _asked(spec: ExportSpec) -> dict[MediaComponent, str]:
    """The checkpoints that were asked for; ``--checkpoint official`` means its release's text encoder and VAE too."""
    implied = OFFICIAL if is_official(spec.checkpoint) else None
    found: dict[MediaComponent, str | None] = {
        "text": official_component(spec.text_encoder or implied, "text", spec.model),
        "vae": official_component(spec.vae or implied, "vae", spec.model),
        "tiny": spec.tiny_vae,
    }
    return {part: named for part, named in found.items() if named is not None and part in spec.components}


def pack_media(spec: ExportSpec, manifest: Manifest, report: Report) -> Manifest:
    """Pack what was asked for into the bundle and list it. All checkpoints are checked before a byte is written.

    A file that was packed from the same bytes in the same way is kept.
    """
    opened: dict[MediaComponent, tuple[ComponentFormat, ComponentCheckpoint]] = {}
    for component, checkpoint in _asked(spec).items():
        form = _format(spec, component)
        opened[component] = form, ComponentCheckpoint(resolve(checkpoint, component), form)
        if kinds := sorted({name.partition(".")[0] for name in opened[component][1].passed_over}):
            report.note(f"{checkpoint}: {', '.join(kinds)} passed over, of which the {form.title} has no use")
    tokenizer = _tokenizer(spec, opened["text"][1].path if "text" in opened else None)
    if not opened and tokenizer is None:
        return manifest
    files, weights = dict(manifest.files), dict(manifest.media_weights)
    for component, (form, source) in opened.items():
        name = weights[component] = weights_name(component)
        key = files_key(f"{sorted(component_metadata(form).items())}\n", source.path.name, source.files, report)
        if is_current(spec.bundle_dir / name, manifest, key, report):
            report.note(f"{name}: unchanged, kept")
            continue
        with report.stage(f"pack {name}") as update:
            pack_component(source, form, spec.bundle_dir / name, update)
        files[name] = file_info(spec.bundle_dir / name, inputs=key, source=pinned(source.path))
    if tokenizer is not None:
        path = spec.bundle_dir / TOKENIZER_NAME
        with told(path), atomic_path(path) as temporary:
            shutil.copyfile(tokenizer, temporary)
        files[TOKENIZER_NAME] = file_info(spec.bundle_dir / TOKENIZER_NAME)
    listed = TOKENIZER_NAME if TOKENIZER_NAME in files else None
    added = msgspec.structs.replace(manifest, files=files, media_weights=weights, tokenizer=listed)
    write_manifest(spec.bundle_dir, added)
    return added


def _tokenizer(spec: ExportSpec, text_encoder: Path | None) -> Path | None:
    """The tokenizer.json to copy: the one named, else one that lies where releases keep it, else google/umt5-xxl's."""
    if spec.tokenizer is not None:
        return resolve_file(spec.tokenizer, TOKENIZER_NAME)
    if text_encoder is None:
        return None
    folder = text_encoder.parent
    for place in (folder, folder.parent / "tokenizer", folder / "google" / "umt5-xxl"):
        if (place / TOKENIZER_NAME).is_file():
            return place / TOKENIZER_NAME
    try:
        return resolve_file(TOKENIZER, TOKENIZER_NAME)
    except UserError as error:
        raise UserError(
            "There is no tokenizer for the text encoder.",
            expected=f"{TOKENIZER_NAME} beside the checkpoint, or {TOKENIZER} from Hugging Face",
            got=str(error).splitlines()[0],
            remedy="give --tokenizer PATH, a tokenizer.json or a folder that holds one",
        ) from error


@dataclass(frozen=True)
class KeptMedia:
    """What stays of text encoder and decoders: component → weights, the tokenizer, and the files' entries."""

    weights: dict[MediaComponent, str]
    tokenizer: str | None
    files: dict[str, FileInfo]


def kept_media(spec: ExportSpec, previous: Manifest | None, report: Report) -> KeptMedia:
    """The old bundle's weights and tokenizer for the components there will be: as listed, else by their own headers.

    What cannot be kept is said. A file that no manifest lists is hashed anew, which does not prove its contents.
    """
    listed = previous.media_weights if previous is not None and previous.model.name == spec.model.name else {}
    weights: dict[MediaComponent, str] = {}
    files: dict[str, FileInfo] = {}
    for component in _MEDIA:
        name = listed.get(component, weights_name(component))
        if not (spec.bundle_dir / name).is_file():
            continue
        kept = "kept" if component in listed else "listed"  # a file that no manifest lists stays where it is
        if component not in spec.components:
            report.note(f"{name}: not {kept}, --components leaves out {component}")
        elif previous is not None and component in listed and _same_linears(component, spec, previous):
            weights[component], files[name] = name, previous.files[name]
        elif (why := _unusable(spec.bundle_dir / name, _format(spec, component))) is not None:
            report.note(f"{name}: not {kept}, {why}")
        else:
            report.note(f"{name}: no manifest lists it; kept for what its header says, and hashed anew")
            weights[component], files[name] = name, file_info(spec.bundle_dir / name)
    tokenizer = previous.tokenizer if previous is not None else TOKENIZER_NAME
    if tokenizer is None or "text" not in spec.components or not (spec.bundle_dir / tokenizer).is_file():
        return KeptMedia(weights, None, files)
    files[tokenizer] = file_info(spec.bundle_dir / tokenizer) if previous is None else previous.files[tokenizer]
    return KeptMedia(weights, tokenizer, files)


def _same_linears(component: MediaComponent, spec: ExportSpec, previous: Manifest) -> bool:
    return component != "text" or previous.text_linear == spec.text_linear


def _format(spec: ExportSpec, component: MediaComponent) -> ComponentFormat:
    return component_format(spec.model, component, spec.text_linear)


def _unusable(file: Path, form: ComponentFormat) -> str | None:
    """Why a component's engines cannot run these weights, or None."""
    try:
        found = SafetensorsFile(file)
    except UserError:
        return "it is not a whole safetensors file"
    said, wanted = found.metadata, component_metadata(form)
    if any(said.get(key) != value for key, value in wanted.items()):
        return f"its header says {said}; this bundle is for {wanted}"
    return None if found.tensors == component_table(form) else f"its tensors are not those of the {form.title}"
