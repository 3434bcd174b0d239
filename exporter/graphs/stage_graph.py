"""A stage's finished graph: traced, cleaned, with launch plans attached; or read back from the previous bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.graphs.passes import finish
from exporter.graphs.trace import trace_stage
from exporter.networks.stage_spec import StageSpec
from exporter.sources import sources_hash
from exporter.spec import ExportSpec
from plugins.dtypes import DTYPES
from plugins.onnx_schema import DOMAIN, PLAN_ATTRIBUTE
from plugins.tensorrt_plugin import PLUGIN_VERSION
from runtime.bundle import Manifest, TensorInfo, verify_file
from runtime.checks import PLUGIN_TOOL
from runtime.input_files import read_input
from runtime.report import Report
from runtime.versions import installed_versions

_TOOLS = ("turbotrt", "torch", "triton", "onnx", "onnxscript", "onnx-graphsurgeon", "tensorrt-rtx", "tensorrt")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class StageGraph:
    """A finished stage graph: ONNX bytes, the hash of what it was made from, and node name → plan bytes."""

    spec: StageSpec
    onnx: bytes
    key: str
    plans: dict[str, bytes]

    @property
    def name(self) -> str:
        return self.spec.name


def onnx_name(stage: str) -> str:
    """The bundle's file name for a stage's graph."""
    return f"{stage}.onnx"


def tools() -> dict[str, str]:
    """Versions of what made the files; a package that is not installed is left out."""
    return {PLUGIN_TOOL: PLUGIN_VERSION, **installed_versions(_TOOLS)}


def stage_graph(spec: ExportSpec, stage: StageSpec, previous: Manifest | None, report: Report) -> StageGraph:
    """The stage's graph with plans for the spec's GPU; the previous bundle's own where its inputs are the same."""
    key = _graph_key(spec, stage)
    if (data := _kept(spec, stage.name, previous, key)) is not None:
        report.note(f"{onnx_name(stage.name)}: unchanged, kept")
        return read_graph(stage, data, key)
    kernels = f", compile kernels for sm_{spec.gpu.cubin_sm}" if stage.plans else ""
    with report.stage(f"trace {stage.name}{kernels}") as update:
        proto = trace_stage(stage)
        update(1, 2)
        proto = finish(proto, stage.name, spec.gpu.cubin_sm)
        update(2, 2)
    return read_graph(stage, proto.SerializeToString(deterministic=True), key)


def _graph_key(spec: ExportSpec, stage: StageSpec) -> str:
    """Hash of all that a graph is made from: a component's choices are none of the others'."""
    facts = f"{stage.name} {spec.model} {sorted(stage.choices.items())} sm_{spec.gpu.cubin_sm}"
    return hashlib.sha256(f"{facts}\n{sorted(tools().items())}\n{sources_hash()}".encode()).hexdigest()


def _kept(spec: ExportSpec, stage: str, previous: Manifest | None, key: str) -> bytes | None:
    name = onnx_name(stage)
    info = previous.files.get(name) if previous else None
    if info is None or info.inputs != key or verify_file(spec.bundle_dir, name, info) is not None:
        return None
    return read_input(spec.bundle_dir / name, info.bytes, "a graph")


def read_graph(stage: StageSpec, data: bytes, key: str) -> StageGraph:
    """The graph in these bytes of ONNX; its nodes carry their plans. Raises RuntimeError if it is not the stage's."""
    import onnx

    graph = onnx.ModelProto.FromString(data).graph
    declared = [(t.name, t.dtype, t.dims) for t in (*stage.input_infos, *stage.output_infos)]
    found = [(t.name, t.dtype, t.dims) for t in (*tensors(graph.input), *tensors(graph.output))]
    if found != declared:
        raise RuntimeError(f"the graph of {stage.name} has other tensors than its stage: {found}, not {declared}")
    plans = {node.name: _plan(node) for node in graph.node if node.domain == DOMAIN}
    if plans and not stage.plans:
        raise RuntimeError(f"the graph of {stage.name} holds our ops, and its stage says that it does not")
    return StageGraph(stage, data, key, plans)


def _plan(node: Any) -> bytes:
    return next(bytes(attribute.s) for attribute in node.attribute if attribute.name == PLAN_ATTRIBUTE)


def tensors(values: Any) -> tuple[TensorInfo, ...]:
    """ONNX value infos as the manifest states them."""
    import onnx

    names = {getattr(onnx.TensorProto, dtype.onnx): name for name, dtype in DTYPES.items()}
    dim_of: Callable[[Any], int | str] = lambda dim: dim.dim_param or dim.dim_value  # noqa: E731
    return tuple(
        TensorInfo(
            name=value.name,
            dtype=names[value.type.tensor_type.elem_type],
            dims=tuple(dim_of(dim) for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )
