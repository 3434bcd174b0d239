"""ONNX graphs run by onnx.reference, our nodes by the ops' references."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

from plugins.onnx_schema import DOMAIN, PLAN_ATTRIBUTE
from plugins.registry import OPS
from plugins.torch_op import reference


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
        return np.asarray(tensor).view(ml_dtypes.bfloat16)
    return np.asarray(tensor)


def our_op(name: str) -> type[OpRun]:
    """The OpRun of one of our ops."""

    def run(self: OpRun, *arrays: np.ndarray, **_: Any) -> tuple[np.ndarray, ...]:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in self.onnx_node.attribute}
        attributes = {key: value.decode() if isinstance(value, bytes) else value for key, value in given.items()}
        out = reference(OPS[name])(*map(to_torch, arrays), **attributes)
        return tuple(map(to_numpy, out if isinstance(out, tuple) else (out,)))

    return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})


class Gemm(OpRun):  # type: ignore[misc]
    """ONNX's Gemm by torch: numpy has no fast bf16 product."""

    op_domain = ""

    def _run(
        self, a: Any, b: Any, c: Any = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
    ) -> tuple[np.ndarray]:
        x, y = to_torch(a), to_torch(b)
        out = alpha * ((x.T if transA else x) @ (y.T if transB else y))
        return (to_numpy(out if c is None else out + beta * to_torch(c)),)


class Gelu(OpRun):  # type: ignore[misc]
    """ONNX's Gelu by torch, for bf16."""

    op_domain = ""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        return (to_numpy(F.gelu(to_torch(x), approximate=approximate)),)


def run_onnx(path: Path | onnx.ModelProto, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The graph's outputs, in order. A file's external data is read from its folder."""
    model = onnx.load(path, load_external_data=False) if isinstance(path, Path) else path
    for node in model.graph.node:  # onnx.reference takes every string for text, and a plan is bytes
        kept = [attribute for attribute in node.attribute if attribute.name != PLAN_ATTRIBUTE]
        del node.attribute[:]
        node.attribute.extend(kept)
    if isinstance(path, Path):
        onnx.load_external_data_for_model(model, str(path.parent))
    session = ReferenceEvaluator(model, new_ops=[*map(our_op, OPS), Gemm, Gelu])
    arrays = session.run(None, {name: to_numpy(tensor) for name, tensor in inputs.items()})
    return [to_torch(array) for array in arrays]
