"""One export: trace → passes with launch plans → engines → bundle, then the weights, then the one-file engine.

Everything but the weights is made in a staging folder beside the bundle and swapped in when it is whole, so that an
interrupted export leaves the previous bundle as it was. Weights come last: without them the engines are already kept.
From the first to the last the bundle is this export's alone: whoever else changes it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from exporter.builder.flavour import check_buildable
from exporter.builder.one_file import add_one_file, carry_one_file, check_memory
from exporter.builder.stage_engine import build_stage, engine_key, kept_engine, library_hash
from exporter.bundle.contents import carry, check_folder, keep_others
from exporter.bundle.facts import model_facts, sampler_facts
from exporter.bundle.polygraphy_files import README_NAME, SCRIPTS_NAME, readme_text, script_text
from exporter.bundle.swap import staging_folder
from exporter.bundle.vram import vram_estimate
from exporter.bundle_lock import Turn, bundle_turn
from exporter.checkpoint.download import Download, tell_downloads
from exporter.checkpoint.experts import look_for_checkpoint
from exporter.graphs.passes import plan_file
from exporter.graphs.stage_graph import StageGraph, onnx_name, stage_graph, tools
from exporter.networks.components import component_stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.stage_spec import StageSpec
from exporter.packing.dit import add_to_bundle, open_experts, pack_checkpoint
from exporter.packing.media import check_media, kept_media, pack_media
from exporter.packing.recovery import kept_weights, previous_manifest
from exporter.spec import ExportSpec
from plugins.library import installed_library
from plugins.registry import OPS
from runtime.bundle import (
    FileInfo,
    GpuFacts,
    Manifest,
    StageEntry,
    file_info,
    write_manifest,
)
from runtime.report import Report

WEIGHTS_NAME = "weights.safetensors"


def export_bundle(spec: ExportSpec, report: Report) -> Path:
    """Export one model for one GPU and return the bundle's folder. Raises UserError."""
    if not spec.onnx_only:
        check_buildable(spec.gpu)
    if spec.embed_plugins:
        installed_library(OPS)  # refused before any work
    if spec.one_file:
        check_memory(spec)
    _check_sources(spec, report)
    options = _options(spec)
    stages = [
        stage
        for component in spec.components
        for stage in component_stages(spec.model, component, options, spec.text_linear)
    ]
    with bundle_turn(spec.bundle_dir, report.note) as turn:
        graphs, manifest = _make(spec, stages, turn, report)
        manifest = pack_media(spec, manifest, report)
        if spec.checkpoint is not None:
            manifest = _add_weights(spec, spec.checkpoint, manifest, report)
        if spec.one_file:
            add_one_file(spec, _of_dit(graphs), manifest, report)
    return spec.bundle_dir


def _make(
    spec: ExportSpec, stages: Sequence[StageSpec], turn: Turn, report: Report
) -> tuple[list[StageGraph], Manifest]:
    """Everything but the weights, in the bundle's place when it is whole."""
    with staging_folder(turn) as staging:
        previous = previous_manifest(turn.folder, report)  # only now: staging may just have brought it back
        check_folder(turn.folder, previous)
        graphs = [stage_graph(spec, stage, previous, report) for stage in stages]
        manifest = _with_polygraphy(_write(spec, graphs, previous, staging, report), staging)
        if spec.one_file and previous is not None:
            manifest = carry_one_file(spec, _of_dit(graphs), previous, manifest, staging)
        write_manifest(staging, manifest)
        keep_others(turn.folder, staging, previous)
    return graphs, manifest


def _of_dit(graphs: Sequence[StageGraph]) -> list[StageGraph]:
    """What a one-file engine is composed of."""
    return [graph for graph in graphs if graph.spec.component == "dit"]


def _check_sources(spec: ExportSpec, report: Report) -> None:
    """Raise UserError for checkpoints that are missing or not the model's, before the minutes that all else takes."""
    downloads: list[Download] = []
    if spec.checkpoint is not None:
        found = look_for_checkpoint(spec.checkpoint, spec.model, report.note, linear=spec.linear, loras=spec.loras)
        if found is None:
            open_experts(
                spec.checkpoint,
                spec.model,
                linear=spec.linear,
                allow_missing_proj_l=spec.allow_missing_proj_l,
                loras=spec.loras,
                note=lambda _: None,  # what is passed over is said when it is packed
            )
        downloads += found or ()
    downloads += check_media(spec, report)
    tell_downloads(downloads, report.note)


def _write(
    spec: ExportSpec, graphs: Sequence[StageGraph], previous: Manifest | None, staging: Path, report: Report
) -> Manifest:
    files: dict[str, FileInfo] = {}
    plans: dict[str, str] = {}
    stages: list[StageEntry] = []
    for graph in graphs:
        for node, data in graph.plans.items():
            plans[node] = plan_file(node, data)
            (staging / plans[node]).write_bytes(data)
            files[plans[node]] = file_info(staging / plans[node])
        stages.append(_stage(spec, graph, previous, staging, files, report))
    weights = kept_weights(spec, WEIGHTS_NAME, previous, report)
    kept = kept_media(spec, previous, report)
    for name in (*weights.files, *kept.files):
        carry(spec.bundle_dir / name, staging / name)
    of_dit = [stage.activation_bytes for stage in stages if stage.component == "dit"]
    activations = [count for count in of_dit if count is not None]
    return Manifest(
        model=model_facts(spec.model),
        sampler=sampler_facts(spec.model, _options(spec)),
        gpu=GpuFacts(name=spec.gpu.name, sm=spec.gpu.sm, flavour=spec.flavour),
        tools=tools(),
        stages=tuple(stages),
        plans=plans,
        files=files | weights.files | kept.files,
        weights=weights.experts,
        media_weights=kept.weights,
        text_linear=spec.text_linear,
        tokenizer=kept.tokenizer,
        has_proj_l=weights.has_proj_l,
        embedded_library=library_hash(spec),
        vram_estimate_bytes=vram_estimate(spec.model, spec.linear, max(activations, default=None)),
    )


def _with_polygraphy(manifest: Manifest, staging: Path) -> Manifest:
    """Write the bundle's scripts for Polygraphy and its README.txt, and list them."""
    (staging / SCRIPTS_NAME).write_text(script_text(manifest), encoding="utf-8")
    (staging / README_NAME).write_text(readme_text(manifest), encoding="utf-8")
    added = {name: file_info(staging / name) for name in (SCRIPTS_NAME, README_NAME)}
    return msgspec.structs.replace(manifest, files={**manifest.files, **added})


def _stage(
    spec: ExportSpec,
    graph: StageGraph,
    previous: Manifest | None,
    staging: Path,
    files: dict[str, FileInfo],
    report: Report,
) -> StageEntry:
    name = onnx_name(graph.name)
    (staging / name).write_bytes(graph.onnx)
    files[name] = file_info(staging / name, inputs=graph.key)
    stage = graph.spec.entry(name)
    if spec.onnx_only:
        return stage
    key = engine_key(spec, stage.profile, graph.onnx)
    if (engine := kept_engine(spec, graph.name, key, previous, staging)) is not None:
        report.note(f"{engine.name}: unchanged, kept")
    else:
        engine = build_stage(spec, graph.name, stage.profile, key, graph.plans, staging, report)
    files[engine.name] = engine.info
    return msgspec.structs.replace(stage, engine=engine.name, activation_bytes=engine.activation_bytes)


def _add_weights(spec: ExportSpec, checkpoint: str, manifest: Manifest, report: Report) -> Manifest:
    packed = pack_checkpoint(
        checkpoint,
        spec.model,
        spec.bundle_dir / WEIGHTS_NAME,
        linear=spec.linear,
        allow_missing_proj_l=spec.allow_missing_proj_l,
        progress=report,
        bundle=manifest,
        loras=spec.loras,
    )
    return add_to_bundle(spec.bundle_dir, manifest, packed, report)


def _options(spec: ExportSpec) -> BlockOptions:
    return BlockOptions(spec.attention, spec.topk_milli, spec.linear)
