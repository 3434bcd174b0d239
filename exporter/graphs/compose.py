"""The one-file graph: embed, the block once for each layer, head, with one expert's packed weights as initializers.

The initializers point into the packed safetensors file (ONNX external data is raw bytes at an offset, and so is a
tensor there): a model of any size is composed without reading or copying its weights, and the graph stays below
protobuf's 2 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.graphs.passes import export_graph, import_graph
from exporter.graphs.stage_graph import StageGraph
from exporter.models import ModelSpec
from plugins.dtypes import DTYPES
from plugins.onnx_schema import DOMAIN, PLAN_ATTRIBUTE
from runtime.bundle import OUTPUT_SUFFIX

ONE_FILE = "one-file"


def compose(model: ModelSpec, graphs: Sequence[StageGraph], weights: Path) -> Any:
    """One step of the whole DiT as a ModelProto: the stages' inputs and outputs, less what one hands to the next.

    ``weights`` is the packed file, which must lie beside the ONNX file. The node ``block.03.Op`` becomes
    ``blocks.N.03.Op`` for layer N, with the same plan.
    """
    import onnx
    import onnx_graphsurgeon as gs

    embed, block, head = graphs
    parts = [(embed, "embed.", ""), *((block, f"blocks.{n}.", f"blocks.{n}.") for n in range(model.layers))]
    packed = SafetensorsFile(weights)
    known: dict[str, Any] = {}  # activations, by the name under which the next stages take them
    inputs: list[Any] = []
    nodes: list[Any] = []
    for graph, scope, prefix in (*parts, (head, "head.", "")):
        part = _scoped(graph, scope)
        for tensor in part.inputs:
            if tensor.name in graph.spec.weights:
                name = prefix + tensor.name
                _replace(tensor, gs.Constant(name, gs.ir.tensor.LazyValues(_external(packed, name))))
            elif tensor.name in known:
                _replace(tensor, known[tensor.name])
            else:
                known[tensor.name] = tensor
                inputs.append(tensor)
        for tensor in part.outputs:
            known[tensor.name.removesuffix(OUTPUT_SUFFIX)] = tensor
            tensor.name = tensor.name if graph is head else scope + tensor.name
        nodes += part.nodes
    whole = gs.Graph(nodes, inputs, part.outputs, name=ONE_FILE, opset=part.opset)
    return export_graph(whole, onnx.ModelProto.FromString(head.onnx))


def _scoped(graph: StageGraph, scope: str) -> Any:
    """A graph-surgeon copy of a stage, its nodes and inner tensors named under ``scope``, plans attached."""
    import onnx

    proto = onnx.ModelProto.FromString(graph.onnx)
    for node in proto.graph.node:  # graph-surgeon takes every string for text, and a plan is bytes
        kept = [attribute for attribute in node.attribute if attribute.name != PLAN_ATTRIBUTE]
        del node.attribute[:]
        node.attribute.extend(kept)
    part = import_graph(proto)
    outer = {id(tensor) for tensor in (*part.inputs, *part.outputs)}
    for tensor in part.tensors().values():
        if id(tensor) not in outer:
            tensor.name = scope + tensor.name
    for node in part.nodes:
        if node.domain == DOMAIN:
            node.attrs[PLAN_ATTRIBUTE] = graph.plans[node.name]
        node.name = scope + node.name.removeprefix(f"{graph.name}.")
    return part


def _replace(old: Any, new: Any) -> None:
    """Let every node that takes ``old`` take ``new``."""
    for node in list(old.outputs):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]


def _external(packed: SafetensorsFile, name: str) -> Any:
    """A TensorProto whose data are the bytes of a packed tensor, where they lie."""
    import onnx

    meta, (offset, length) = packed.tensors[name], packed.span(name)
    proto = onnx.TensorProto(name=name, dims=meta.shape, data_type=getattr(onnx.TensorProto, DTYPES[meta.dtype].onnx))
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", packed.path.name), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    return proto
