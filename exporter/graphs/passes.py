"""Graph-surgeon passes over a traced stage: clean up, and attach to each of our nodes the launch plan it will run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from plugins.compile import plan_bytes
from plugins.onnx_schema import DOMAIN, PLAN_ATTRIBUTE, VERSION
from plugins.op import Op
from plugins.registry import OPS


def finish(proto: Any, stage: str, sm: int) -> Any:
    """The cleaned ModelProto with plans attached. Same input, same bytes."""
    graph = import_graph(proto)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    attach_plans(graph, stage, sm)
    return export_graph(graph, proto)


def import_graph(proto: Any) -> Any:
    """The graph-surgeon graph of a ModelProto."""
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.logger import G_LOGGER

    G_LOGGER.severity = G_LOGGER.ERROR  # it warns that numpy has no bf16 of its own, and that it prints no colours
    return gs.import_onnx(proto)


def export_graph(graph: Any, like: Any) -> Any:
    """The ModelProto of a graph, with the opsets of ``like`` and nothing that depends on where or when it was made."""
    import onnx
    import onnx_graphsurgeon as gs

    done = gs.export_onnx(graph, do_type_check=False)
    done.producer_name, done.producer_version = "turbotrt", ""
    del done.metadata_props[:]
    done.ir_version = min(like.ir_version, 10)
    del done.opset_import[:]
    versions = {entry.domain: entry.version for entry in like.opset_import if entry.domain in ("", DOMAIN)}
    for domain, version in sorted({**versions, DOMAIN: VERSION}.items()):
        done.opset_import.append(onnx.helper.make_opsetid(domain, version))
    for item in (*done.graph.node, *done.graph.value_info, *done.graph.input, *done.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    del done.graph.metadata_props[:]
    return done


def attach_plans(graph: Any, stage: str, sm: int) -> dict[str, bytes]:
    """Give each of our nodes its stable name and its plan for the SM."""
    plans: dict[str, bytes] = {}
    for node in graph.nodes:
        if node.domain != DOMAIN:
            continue
        op = OPS[node.op]
        node.name = f"{stage}.{len(plans):02d}.{op.name}"
        plans[node.name] = plan_bytes(op, static_dims(op, node), _attributes(op, node.attrs), sm)
        node.attrs[PLAN_ATTRIBUTE] = plans[node.name]
    return plans


def _attributes(op: Op, attrs: Mapping[str, Any]) -> dict[str, int | str]:
    return {attr.name: attrs[attr.name] for attr in op.attributes if attr.name in attrs}


def static_dims(op: Op, node: Any) -> dict[str, int]:
    """The values of an op's static symbols, from the shapes of the node's inputs."""
    dims: dict[str, int] = {}
    for name, (index, axis) in op.symbol_sources().items():
        if name in op.dynamic:
            continue
        value = node.inputs[index].shape[axis] if node.inputs[index].shape is not None else None
        if not isinstance(value, int):
            raise ValueError(
                f"{op.name} {node.name}: {op.inputs[index].name} axis {axis} must be static, got {value!r}"
            )
        dims[name] = value
    return dims


def plan_file(node: str, data: bytes) -> str:
    """The bundle's file name for a node's plan; equal plans share one file."""
    return f"{node.split('.')[-1]}-{hashlib.sha256(data).hexdigest()[:12]}.plan"
