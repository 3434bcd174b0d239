"""The bundle's ONNX stages, run node by node by onnx.reference on the CPU; our nodes are answered by their oracles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor
from torch.nn import functional as F

from exporter.compare.machines.machine import BlockInput, GraphMachine, block_feed, watched
from exporter.compare.machines.ops import Call, Evaluate, by_reference, call_label
from exporter.compare.machines.weights import Weights
from exporter.networks.dit.weights import Stage
from plugins.onnx_schema import DOMAIN, PLAN_ATTRIBUTE
from plugins.registry import OPS
from runtime.bundle import OUTPUT_SUFFIX, StageEntry

Array = np.ndarray[Any, Any]


def to_torch(array: Array) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_numpy(tensor: Tensor) -> Array:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    array: Array = tensor.numpy()
    return array


class _Gemm(OpRun):  # type: ignore[misc]
    """ONNX's Gemm by torch: numpy has no fast bf16 product."""

    op_domain = ""

    def _run(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        transA: int = 0,
        transB: int = 0,
    ) -> tuple[Array]:
        x, y = to_torch(a), to_torch(b)
        out = alpha * ((x.T if transA else x) @ (y.T if transB else y))
        return (to_numpy(out if c is None else out + beta * to_torch(c)),)


_Gemm.__name__ = "Gemm"  # onnx.reference finds an op by its class's name


class _Gelu(OpRun):  # type: ignore[misc]
    """ONNX's Gelu by torch, for bf16."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        return (to_numpy(F.gelu(to_torch(x), approximate=approximate)),)


_Gelu.__name__ = "Gelu"


def _labels(graph: Any) -> dict[str, str]:
    """First output of each of our nodes → the call's label."""
    names: dict[str, str] = {value.name: value.name for value in graph.input}
    labels = {}
    for node in graph.node:
        if node.domain == DOMAIN:
            label = call_label(node.op_type, [names.get(name) for name in node.input])
            names |= dict.fromkeys(node.output, label)
            labels[node.output[0]] = label
    return labels


class OnnxStage:
    """One stage's graph. ``evaluate`` may be changed between runs."""

    def __init__(self, path: Path, evaluate: Evaluate) -> None:
        proto = onnx.load(path)
        for node in proto.graph.node:  # onnx.reference takes every string for UTF-8, and a plan is bytes
            kept = [attribute for attribute in node.attribute if attribute.name != PLAN_ATTRIBUTE]
            del node.attribute[:]
            node.attribute.extend(kept)
        self.evaluate = evaluate
        self._labels = _labels(proto.graph)
        self._session = ReferenceEvaluator(proto, new_ops=[*map(self._op, OPS), _Gemm, _Gelu])
        self._outputs = [value.name.removesuffix(OUTPUT_SUFFIX) for value in proto.graph.output]

    def _op(self, name: str) -> type[OpRun]:
        stage = self

        def run(self: OpRun, *arrays: Array, **_: Any) -> tuple[Array, ...]:
            node = self.onnx_node
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            decoded = {key: value.decode() if isinstance(value, bytes) else value for key, value in given.items()}
            attributes = OPS[name].attribute_values(decoded)
            call = Call(OPS[name], tuple(map(to_torch, arrays)), attributes, stage._labels[node.output[0]])
            return tuple(map(to_numpy, stage.evaluate(call)))

        return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})

    def __call__(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = self._session.run(None, {name: to_numpy(tensor) for name, tensor in feed.items()})
        return dict(zip(self._outputs, map(to_torch, outputs), strict=True))


class OnnxMachine(GraphMachine):
    """The graphs that the engines are built from, with the bundle's weights."""

    def __init__(self, name: str, folder: Path, entries: Sequence[StageEntry], weights: Weights) -> None:
        """``entries``: the stages of the bundle in ``folder``."""
        super().__init__(name, torch.device("cpu"))
        self._stages = {entry.name: OnnxStage(folder / entry.onnx, by_reference) for entry in entries}
        self._outputs = {entry.name: tuple(entry.gives) for entry in entries}
        self._weights = weights

    @property
    def evaluate(self) -> Evaluate:
        return by_reference

    def _run(self, stage: Stage, expert: str, feed: Mapping[str, Tensor], layer: int = 0) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            out = self._stages[stage]({**feed, **self._weights(expert, stage, layer)})
        return tuple(out[name] for name in self._outputs[stage])

    def block(self, expert: str, layer: int, given: BlockInput) -> Tensor:
        return self.block_by(by_reference, expert, layer, given)

    def block_by(self, evaluate: Evaluate, expert: str, layer: int, given: BlockInput) -> Tensor:
        """``block`` with our nodes answered by another evaluation."""
        self._stages["block"].evaluate = watched(self, layer, evaluate)
        return self._run("block", expert, block_feed(given), layer)[0]
