"""The one-file engine: a whole step in one engine, one expert's weights in it as constants. An option: --one-file.

A model of two experts gets one engine for each: constants cannot be swapped as the three small engines' weights are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from exporter.builder.stage_engine import build_stage, engine_key, kept_engine, log_name
from exporter.bundle.contents import carry
from exporter.bundle.swap import scratch_folder
from exporter.graphs.compose import ONE_FILE, compose
from exporter.graphs.stage_graph import StageGraph, onnx_name, tensors
from exporter.models import ModelSpec
from exporter.networks.dit.weights import packed_bytes
from exporter.packing.dit import weight_paths
from exporter.spec import ExportSpec
from plugins.errors import UserError
from plugins.onnx_schema import DOMAIN
from runtime.atomic import put_in_place
from runtime.bundle import FileInfo, Manifest, Profile, StageEntry, file_info, verify_file, write_manifest
from runtime.report import Report

# The builder's peak RSS by the weights' bytes: 0.62, 2.05, 3.53 and 5.02 GB were measured on 0.10, 0.52, 0.98 and
# 1.45 GB of INT8 weights (1, 10, 20 and all layers of 1.3B), which is 3.2 times the weights and 0.35 GB.
RAM_FACTOR = 3.3
RAM_BASE = 5 * 10**8


def check_memory(spec: ExportSpec) -> None:
    """Raise UserError, with the arithmetic, where this machine's memory cannot hold the build."""
    weights, available = packed_bytes(spec.model, spec.linear), available_memory()
    need = int(RAM_FACTOR * weights) + RAM_BASE
    if available < need:
        raise UserError(
            f"--one-file for {spec.model.name} does not fit into this machine's memory.",
            expected=f"{RAM_FACTOR} × {weights / 1e9:.2f} GB of weights + {RAM_BASE / 1e9} GB = {need / 1e9:.1f} GB "
            "available",
            got=f"{available / 1e9:.1f} GB",
            remedy="drop --one-file: the three engines run the same blocks, with the weights beside them; or export "
            "on a machine with more memory",
        )


def available_memory() -> int:
    """Bytes of memory that Linux can give to new processes without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def stage_stem(model: ModelSpec, expert: str) -> str:
    """The stem of an expert's one-file names: one-file, or one-file-<expert> where there are several."""
    return weight_paths(Path(f"{ONE_FILE}.onnx"), model)[expert].stem


def _key(spec: ExportSpec, graphs: Sequence[StageGraph], weights: FileInfo) -> str:
    digests = [hashlib.sha256(graph.onnx).digest() for graph in graphs]
    return engine_key(spec, _profile(graphs), *digests, weights.sha256.encode())


def _profile(graphs: Sequence[StageGraph]) -> Profile:
    return graphs[0].spec.entry(onnx_name(graphs[0].name)).profile


def carry_one_file(
    spec: ExportSpec, graphs: Sequence[StageGraph], previous: Manifest, manifest: Manifest, staging: Path
) -> Manifest:
    """The new manifest with those one-file engines of the previous bundle that would be built the same, linked."""
    for stage in previous.stages:
        expert = stage.expert
        if stage.name != ONE_FILE or expert is None or expert not in manifest.weights:
            continue
        stem = stage_stem(spec.model, expert)
        key = _key(spec, graphs, manifest.files[manifest.weights[expert]])
        graph = previous.files[stage.onnx]
        if verify_file(spec.bundle_dir, stage.onnx, graph) is not None:
            continue
        if (kept := kept_engine(spec, stem, key, previous, staging)) is not None:
            carry(spec.bundle_dir / stage.onnx, staging / stage.onnx)
            files = {**manifest.files, stage.onnx: graph, kept.name: kept.info}
            manifest = msgspec.structs.replace(manifest, stages=(*manifest.stages, stage), files=files)
    return manifest


def add_one_file(spec: ExportSpec, graphs: Sequence[StageGraph], manifest: Manifest, report: Report) -> Manifest:
    """Build the bundle's one-file engines from its weights, those there already excepted; returns the manifest."""
    have = {stage.expert: stage for stage in manifest.stages if stage.name == ONE_FILE}
    for expert, weights in manifest.weights.items():
        if expert in have:
            report.note(f"{have[expert].engine}: unchanged, kept")
            continue
        manifest = _build(spec, graphs, manifest, expert, weights, report)
        write_manifest(spec.bundle_dir, manifest)
    return manifest


def _build(
    spec: ExportSpec, graphs: Sequence[StageGraph], manifest: Manifest, expert: str, weights: str, report: Report
) -> Manifest:
    stem = stage_stem(spec.model, expert)
    key = _key(spec, graphs, manifest.files[weights])
    with scratch_folder(spec.bundle_dir) as scratch:
        carry(spec.bundle_dir / weights, scratch / weights)  # the graph finds its weights beside it
        proto = compose(spec.model, graphs, scratch / weights)
        (scratch / onnx_name(stem)).write_bytes(proto.SerializeToString(deterministic=True))
        plugins = [node.name for node in proto.graph.node if node.domain == DOMAIN]
        stage = StageEntry(
            component="dit",
            name="one-file",
            expert=expert,
            onnx=onnx_name(stem),
            inputs=tensors(proto.graph.input),
            outputs=tensors(proto.graph.output),
            profile=_profile(graphs),
        )
        del proto  # some 100 MB at 14B, beside a builder that needs all memory it can get
        engine = build_stage(spec, stem, stage.profile, key, plugins, scratch, report)
        files = {**manifest.files, stage.onnx: file_info(scratch / stage.onnx), engine.name: engine.info}
        for name in (stage.onnx, engine.name, log_name(stem)):
            put_in_place(scratch / name, spec.bundle_dir / name)
    stage = msgspec.structs.replace(stage, engine=engine.name, activation_bytes=engine.activation_bytes)
    return msgspec.structs.replace(manifest, stages=(*manifest.stages, stage), files=files)
