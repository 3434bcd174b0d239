"""One engine of a bundle: kept from the previous bundle where all that it is made from is the same, built otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from exporter.builder.child import BuildRequest
from exporter.builder.parent import build_engine
from exporter.bundle.contents import carry
from exporter.graphs.stage_graph import tools
from exporter.spec import ExportSpec
from plugins.library import installed_library
from plugins.registry import OPS
from runtime.bundle import FileInfo, Manifest, Profile, file_info, sha256_of, verify_file
from runtime.report import Report


@dataclass(frozen=True)
class Engine:
    """A built or kept engine: its file's name and entry, and the builder's "Total Activation Memory" in bytes."""

    name: str
    info: FileInfo
    activation_bytes: int | None


def engine_name(stage: str) -> str:
    """The bundle's file name for a stage's engine."""
    return f"{stage}.engine"


def log_name(stage: str) -> str:
    """The file that keeps what TensorRT said while it built a stage's engine."""
    return f"{stage}.log"


def library_hash(spec: ExportSpec) -> str | None:
    """The sha256 of the plugin library that the spec's engines carry; None where they carry none."""
    return sha256_of(installed_library(OPS)) if spec.embed_plugins else None


def engine_key(spec: ExportSpec, profile: Profile, *made_from: bytes) -> str:
    """Hash of all that an engine is made from: the target, the builder, the profile, the library and what is given."""
    versions = tools()
    builder = versions.get("tensorrt-rtx" if spec.flavour == "tensorrt_rtx" else "tensorrt", "")
    text = f"{spec.gpu.sm} {spec.flavour} {builder} {profile.min} {profile.opt} {profile.max} {versions['turbotrt']}\n"
    digest = hashlib.sha256(text.encode())
    for part in (*made_from, (library_hash(spec) or "").encode()):
        digest.update(part)
    return digest.hexdigest()


def kept_engine(spec: ExportSpec, stage: str, key: str, previous: Manifest | None, staging: Path) -> Engine | None:
    """The previous bundle's engine, linked into ``staging`` with its log, if it was made from the same."""
    name = engine_name(stage)
    info = previous.files.get(name) if previous else None
    if previous is None or info is None or info.inputs != key:
        return None
    if verify_file(spec.bundle_dir, name, info) is not None:
        return None
    for file in (name, log_name(stage), Path(name).with_suffix(".jitcache").name):
        if (spec.bundle_dir / file).is_file():
            carry(spec.bundle_dir / file, staging / file)
    return Engine(name, info, next(old.activation_bytes for old in previous.stages if old.engine == name))


def build_stage(
    spec: ExportSpec,
    stage: str,
    profile: Profile,
    key: str,
    plugins: Collection[str],
    staging: Path,
    report: Report,
) -> Engine:
    """Build ``<stage>.engine`` from ``<stage>.onnx`` in ``staging``, whose nodes ``plugins`` must become plugins."""
    # Beside the bundle, so that it outlives the staging folder when the build fails.
    log = staging.with_name(f".{spec.bundle_dir.name}.{log_name(stage)}")
    log.unlink(missing_ok=True)
    request = BuildRequest(
        onnx=str(staging / f"{stage}.onnx"),
        engine=str(staging / engine_name(stage)),
        log=str(log),
        gpu=spec.gpu.name,
        profile=(profile.min, profile.opt, profile.max),
        embed=spec.embed_plugins and bool(plugins),
    )
    with report.stage(f"build {engine_name(stage)} for {spec.gpu.name}") as update:
        try:
            result = build_engine(request, update)
        except KeyboardInterrupt:
            log.unlink(missing_ok=True)
            raise
    if sorted(result.plugin_layers) != sorted(plugins):
        raise RuntimeError(f"{stage}: plugin nodes {sorted(plugins)}, TensorRT parsed {result.plugin_layers}")
    log.rename(staging / log_name(stage))
    name = engine_name(stage)
    return Engine(name, file_info(staging / name, inputs=key), result.activation_bytes)
