"""A model's block as a graph of our ops at fixed sizes: what estimates, benchmarks and checks of kernels walk over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import block_stage
from plugins.compile import plan_bytes
from plugins.cost import Cost, cost
from plugins.op import AttrValue, Op
from plugins.registry import OPS
from plugins.torch_dtypes import torch_dtype
from plugins.torch_op import NAMESPACE
from runtime.dims import shape_of


@dataclass(frozen=True)
class OpCall:
    """One use of an op: the shapes of its inputs and the attributes, defaults filled in."""

    op: Op
    shapes: tuple[tuple[int, ...], ...]
    attributes: tuple[tuple[str, AttrValue], ...]

    @property
    def dims(self) -> dict[str, int]:
        """The values of the op's symbols."""
        return self.op.bind(self.shapes)

    @property
    def cost(self) -> Cost:
        """What it must move and compute."""
        return cost(self.op, self.dims, dict(self.attributes))

    @property
    def label(self) -> str:
        """The op with its dims and attributes, as tables show it."""
        dims = " ".join(f"{name}={value}" for name, value in self.dims.items())
        return " ".join([self.op.name, dims, *(f"{name}={value}" for name, value in self.attributes)])

    def plan(self, sm: int) -> bytes:
        """The compiled plan of this use for an SM."""
        return plan_bytes(self.op, self.dims, dict(self.attributes), sm)


def our_op(target: Any) -> Op | None:
    """The op that a graph node's target calls, or None for torch's own."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != NAMESPACE:
        return None
    return OPS[target._schema.name.partition("::")[2]]


def meta_inputs(model: ModelSpec, options: BlockOptions, length: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Meta tensors for a block's activation inputs, in order, and for its weights by name."""

    def empty(dims: tuple[int | str, ...], dtype: str) -> torch.Tensor:
        return torch.empty(shape_of(dims, {"L": length}), dtype=torch_dtype(dtype), device="meta")

    stage = block_stage(model, options)
    activations = [empty(spec.dims, spec.dtype) for spec in stage.inputs.values()]
    return activations, {name: empty(spec.shape, spec.dtype) for name, spec in stage.weights.items()}


def block_graph(model: ModelSpec, options: BlockOptions, length: int) -> torch.fx.GraphModule:
    """The block at L = ``length``: a GraphModule of (activations, weights by name) → [x]. Nothing is allocated."""
    function = block_stage(model, options).function
    return make_fx(lambda activations, weights: function(*activations, weights))(*meta_inputs(model, options, length))


def call_of(op: Op, args: tuple[Any, ...]) -> OpCall:
    """The call with these arguments: tensors, then attributes in the declaration's order."""
    given = {attr.name: value for attr, value in zip(op.attributes, args[len(op.inputs) :], strict=False)}
    shapes = tuple(tuple(int(dim) for dim in tensor.shape) for tensor in args[: len(op.inputs)])
    return OpCall(op, shapes, tuple(op.attribute_values(given).items()))


def op_calls(graph: torch.fx.GraphModule) -> list[OpCall]:
    """Every call of one of our ops, in order."""
    calls = []
    for node in graph.graph.nodes:
        if node.op == "call_function" and (op := our_op(node.target)) is not None:
            values = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in node.args]
            calls.append(call_of(op, tuple(values)))
    return calls


def block_calls(model: ModelSpec, options: BlockOptions, length: int | None = None) -> Mapping[OpCall, int]:
    """Each distinct call of a block at L = ``length`` (the default size's), and how often a block makes it."""
    counts: dict[OpCall, int] = {}
    for call in op_calls(block_graph(model, options, length or model.tokens())):
        counts[call] = counts.get(call, 0) + 1
    return counts
