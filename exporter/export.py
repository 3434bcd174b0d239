"""One export: trace → passes with launch plans → engines → bundle, then the weights.

Everything but the weights is made in a staging folder beside the bundle and swapped in when it is whole, so that an
interrupted export leaves the previous bundle as it was. Weights come last: without them the engines are already kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from exporter.build import build_engine
from exporter.build_child import BuildRequest
from exporter.components import component_stages
from exporter.flavour import check_buildable
from exporter.media_weights import kept_media, pack_media
from exporter.models import FPS, FREQ_DIM, TEXT_LENGTH
from exporter.packing import add_to_bundle, pack_checkpoint
from exporter.passes import finish, plan_file
from exporter.progress import Progress
from exporter.spec import ExportSpec
from exporter.stage_spec import StageSpec
from exporter.stages import BlockOptions
from exporter.trace import trace_stage
from exporter.weights import Stage, packed_bytes
from plugins.dtypes import DTYPES
from plugins.errors import UserError
from plugins.tensorrt_plugin import PLUGIN_VERSION
from runtime.bundle import (
    MANIFEST_NAME,
    FileInfo,
    GpuFacts,
    Manifest,
    MediaStage,
    ModelFacts,
    Profile,
    SamplerFacts,
    StageFiles,
    TensorInfo,
    file_info,
    load_manifest,
    verify_file,
    write_manifest,
)
from runtime.checks import PLUGIN_TOOL

STAGES: tuple[Stage, ...] = ("embed", "block", "head")
WEIGHTS_NAME = "weights.safetensors"
_TOOLS = ("turbotrt", "torch", "triton", "onnx", "onnxscript", "onnx-graphsurgeon", "tensorrt-rtx", "tensorrt")


@dataclass(frozen=True)
class StageGraph:
    """A finished stage graph: ONNX bytes, I/O as the manifest states it, and node name → plan bytes."""

    spec: StageSpec
    onnx: bytes
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    plans: dict[str, bytes]

    @property
    def name(self) -> str:
        return self.spec.name


def export_bundle(spec: ExportSpec, report: Progress) -> Path:
    """Export one model for one GPU and return the bundle's folder. Raises UserError."""
    if spec.one_file:
        raise UserError("--one-file is not built yet.", remedy="drop --one-file: the three engines run the same blocks")
    if not spec.onnx_only:
        check_buildable(spec.gpu)
    options = BlockOptions(spec.attention, spec.topk_milli, spec.linear)
    graphs = [
        _graph(spec, stage, report)
        for component in spec.components
        for stage in component_stages(spec.model, component, options)
    ]
    with _staging(spec.bundle_dir) as staging:
        previous = _previous(spec.bundle_dir)  # only now: staging may just have brought it back
        manifest = _write(spec, graphs, previous, staging, report)
        write_manifest(staging, manifest)
    manifest = pack_media(spec, manifest, report)
    if spec.checkpoint is not None:
        _add_weights(spec, manifest, report)
    return spec.bundle_dir


def log_name(stage: str) -> str:
    """The file that keeps what TensorRT said while it built a stage's engine."""
    return f"{stage}.log"


def tools() -> dict[str, str]:
    """Versions of what made the files; a package that is not installed is left out."""
    found = {PLUGIN_TOOL: PLUGIN_VERSION}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _graph(spec: ExportSpec, stage: StageSpec, report: Progress) -> StageGraph:
    kernels = f", compile kernels for sm_{spec.gpu.cubin_sm}" if stage.component == "dit" else ""
    with report.stage(f"trace {stage.name}{kernels}") as update:
        proto = trace_stage(stage)
        update(1, 2)
        proto, plans = finish(proto, stage.name, spec.gpu.cubin_sm)
        update(2, 2)
    data = proto.SerializeToString(deterministic=True)
    return StageGraph(stage, data, _tensors(proto.graph.input), _tensors(proto.graph.output), plans)


def _tensors(values: Any) -> tuple[TensorInfo, ...]:
    import onnx

    names = {getattr(onnx.TensorProto, dtype.onnx): name for name, dtype in DTYPES.items()}
    return tuple(
        TensorInfo(
            name=value.name,
            dtype=names[value.type.tensor_type.elem_type],
            dims=tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _previous(folder: Path) -> Manifest | None:
    """The bundle there now, if it is one this version reads; a damaged one is simply made anew."""
    try:
        return load_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    except UserError:
        return None


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder that takes the bundle's place when the block ends well, and vanishes when it does not.

    Exports into one --out take turns here. What a killed export left behind is put right by the next one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.partial")
    retired = folder.with_name(f".{folder.name}.previous")
    lock = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _restore(folder, staging, retired)
        staging.mkdir()
        try:
            yield staging
            if folder.exists():
                folder.rename(retired)
            staging.rename(folder)
        finally:
            _restore(folder, staging, retired)
    finally:
        os.close(lock)


def _restore(folder: Path, staging: Path, retired: Path) -> None:
    """Bring back a bundle whose replacement never came, and remove what else an export left."""
    if retired.exists() and not folder.exists():
        retired.rename(folder)
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)


def _write(
    spec: ExportSpec, graphs: list[StageGraph], previous: Manifest | None, staging: Path, report: Progress
) -> Manifest:
    files: dict[str, FileInfo] = {}
    plans: dict[str, str] = {}
    stages: list[StageFiles] = []
    media: list[MediaStage] = []
    for graph in graphs:
        for node, data in graph.plans.items():
            plans[node] = plan_file(node, data)
            (staging / plans[node]).write_bytes(data)
            files[plans[node]] = file_info(staging / plans[node])
        made = _stage(spec, graph, previous, staging, files, report)
        (stages if isinstance(made, StageFiles) else media).append(made)  # type: ignore[arg-type]
    weights = _kept_weights(spec, previous, staging, files)
    return Manifest(
        model=_model_facts(spec),
        sampler=_sampler_facts(spec),
        gpu=GpuFacts(name=spec.gpu.name, sm=spec.gpu.sm, flavour=spec.flavour),
        tools=tools(),
        stages=tuple(stages),
        plans=plans,
        files=files,
        weights=weights,
        media=tuple(media),
        **kept_media(spec, previous, staging, files),
        has_proj_l=previous.has_proj_l if previous and weights else None,
        vram_estimate_bytes=_vram_estimate(spec, stages),
    )


def _stage(
    spec: ExportSpec,
    graph: StageGraph,
    previous: Manifest | None,
    staging: Path,
    files: dict[str, FileInfo],
    report: Progress,
) -> StageFiles | MediaStage:
    onnx_name, engine_name = f"{graph.name}.onnx", f"{graph.name}.engine"
    (staging / onnx_name).write_bytes(graph.onnx)
    files[onnx_name] = file_info(staging / onnx_name)
    low, middle, high = graph.spec.profile
    profile = Profile(min=low, opt=middle, max=high)
    facts: dict[str, Any] = {
        "name": graph.name, "onnx": onnx_name, "inputs": graph.inputs, "outputs": graph.outputs, "profile": profile
    }  # fmt: skip
    component = graph.spec.component
    stage = StageFiles(**facts) if component == "dit" else MediaStage(component=component, **facts)
    if spec.onnx_only:
        return stage
    key = _engine_key(spec, graph, profile)
    if (kept := _kept_engine(spec, previous, engine_name, key, staging)) is not None and previous is not None:
        report.note(f"{engine_name}: unchanged, kept")
        if (spec.bundle_dir / log_name(graph.name)).is_file():
            os.link(spec.bundle_dir / log_name(graph.name), staging / log_name(graph.name))
        files[engine_name] = kept
        before: tuple[StageFiles | MediaStage, ...] = (*previous.stages, *previous.media)
        activation = next(old.activation_bytes for old in before if old.name == graph.name)
    else:
        activation = _build(spec, graph, profile, staging, report)
        files[engine_name] = file_info(staging / engine_name, inputs=key)
    return msgspec.structs.replace(stage, engine=engine_name, activation_bytes=activation)


def _build(spec: ExportSpec, graph: StageGraph, profile: Profile, staging: Path, report: Progress) -> int | None:
    # Beside the bundle, so that it outlives the staging folder when the build fails.
    log = spec.bundle_dir.with_name(f".{spec.bundle_dir.name}.{log_name(graph.name)}")
    log.unlink(missing_ok=True)
    request = BuildRequest(
        onnx=str(staging / f"{graph.name}.onnx"),
        engine=str(staging / f"{graph.name}.engine"),
        log=str(log),
        gpu=spec.gpu.name,
        profile=(profile.min, profile.opt, profile.max),
    )
    with report.stage(f"build {graph.name}.engine for {spec.gpu.name}") as update:
        try:
            result = build_engine(request, update)
        except KeyboardInterrupt:
            log.unlink(missing_ok=True)
            raise
    if len(result.plugin_layers) != len(graph.plans):
        raise RuntimeError(f"{graph.name}: {len(graph.plans)} plugin nodes, TensorRT parsed {result.plugin_layers}")
    log.rename(staging / log_name(graph.name))
    return result.activation_bytes


def _engine_key(spec: ExportSpec, graph: StageGraph, profile: Profile) -> str:
    """Hash of all that an engine is made from."""
    versions = tools()
    builder = versions.get("tensorrt-rtx" if spec.flavour == "tensorrt_rtx" else "tensorrt", "")
    text = f"{spec.gpu.sm} {spec.flavour} {builder} {profile.min} {profile.opt} {profile.max} {versions['turbotrt']}\n"
    return hashlib.sha256(text.encode() + graph.onnx).hexdigest()


def _kept_engine(spec: ExportSpec, previous: Manifest | None, name: str, key: str, staging: Path) -> FileInfo | None:
    info = previous.files.get(name) if previous else None
    if info is None or info.inputs != key or verify_file(spec.bundle_dir, name, info) is not None:
        return None
    os.link(spec.bundle_dir / name, staging / name)
    return info


def _kept_weights(
    spec: ExportSpec, previous: Manifest | None, staging: Path, files: dict[str, FileInfo]
) -> dict[str, str]:
    """Weights do not depend on what an export changes: those in the previous bundle stay, as links."""
    if previous is None or previous.sampler.linear != spec.linear or previous.model.name != spec.model.name:
        return {}
    kept = {e: name for e, name in previous.weights.items() if (spec.bundle_dir / name).is_file()}
    for name in kept.values():
        os.link(spec.bundle_dir / name, staging / name)
        files[name] = previous.files[name]
    return kept


def _add_weights(spec: ExportSpec, manifest: Manifest, report: Progress) -> None:
    assert spec.checkpoint is not None
    packed = pack_checkpoint(
        spec.checkpoint,
        spec.model,
        spec.bundle_dir / WEIGHTS_NAME,
        linear=spec.linear,
        allow_missing_proj_l=spec.allow_missing_proj_l,
        progress=report,
    )
    add_to_bundle(spec.bundle_dir, manifest, packed)


def _model_facts(spec: ExportSpec) -> ModelFacts:
    model = spec.model
    return ModelFacts(
        name=model.name,
        dim=model.dim,
        layers=model.layers,
        heads=model.heads,
        ffn_dim=model.ffn_dim,
        in_channels=model.in_channels,
        text_length=TEXT_LENGTH,
        freq_dim=FREQ_DIM,
        size=model.size,
        frames=model.frames,
        fps=FPS,
        max_tokens=model.max_tokens,
        experts=model.experts,
    )


def _sampler_facts(spec: ExportSpec) -> SamplerFacts:
    return SamplerFacts(
        steps=spec.model.steps,
        sigma_max=spec.model.sigma_max,
        boundary=spec.model.boundary,
        topk_milli=spec.topk_milli,
        attention=spec.attention,
        linear=spec.linear,
    )


def _vram_estimate(spec: ExportSpec, stages: list[StageFiles]) -> int:
    """One expert's weights, the largest activation memory the builder states (at the profile's maximum), and I/O."""
    length = spec.model.max_tokens
    io = 2 * 2 * length * spec.model.dim + 4 * 4 * length * 64 + 2 * 4 * length * 64
    return packed_bytes(spec.model, spec.linear) + max(s.activation_bytes or 0 for s in stages) + io
