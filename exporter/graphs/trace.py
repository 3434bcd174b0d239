"""Stage functions traced on meta tensors to ONNX: named inputs, weights as inputs, the profile's symbols dynamic."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

from exporter.networks.stage_spec import StageSpec
from plugins.onnx_schema import translation_table
from plugins.torch_dtypes import torch_dtype
from runtime.dims import split_dim

OPSET = 20
_LARGEST = 1 << 17
# Any lengths that are no other dimension, of the trace or of a model.
_TRACE_LENGTHS = {"L": 1000, "H": 38, "W": 46}


class _StageModule(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[..., Any], activations: int, weights: tuple[str, ...]):
        super().__init__()
        self.function, self.activations, self.weights = function, activations, weights

    def forward(self, *args: torch.Tensor) -> Any:
        weights = dict(zip(self.weights, args[self.activations :], strict=True))
        return self.function(*args[: self.activations], weights)


def _dim(dim: int | str, symbols: dict[str, Any]) -> Any:
    if isinstance(dim, int):
        return dim
    factor, symbol = split_dim(dim)
    return factor * symbols[symbol] if factor > 1 else symbols[symbol]


def _arguments(stage: StageSpec) -> tuple[list[torch.Tensor], list[dict[int, Any] | None]]:
    """Meta tensors of every input, and the symbols of their dynamic axes."""
    used = {split_dim(dim)[1] for spec in stage.inputs.values() for dim in spec.dims if isinstance(dim, str)}
    symbols = {name: torch.export.Dim(name, min=2, max=_LARGEST) for name in sorted(used)}
    args, shapes = [], []
    for spec in stage.inputs.values():
        dims = [_dim(dim, _TRACE_LENGTHS) for dim in spec.dims]
        args.append(torch.empty(dims, dtype=torch_dtype(spec.dtype), device="meta"))
        dynamic = {axis: _dim(dim, symbols) for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
        shapes.append(dynamic or None)
    for weight in stage.weights.values():
        args.append(torch.empty(weight.shape, dtype=torch_dtype(weight.dtype), device="meta"))
        shapes.append(None)
    return args, shapes


def trace_stage(stage: StageSpec) -> Any:
    """The stage's onnx.ModelProto. Nothing is allocated: parameters and inputs are meta tensors."""
    module = _StageModule(stage.function, len(stage.inputs), tuple(stage.weights))
    args, shapes = _arguments(stage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for noisy in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            tuple(args),
            dynamo=True,
            opset_version=OPSET,
            input_names=[*stage.inputs, *stage.weights],
            output_names=[tensor.name for tensor in stage.output_infos],
            dynamic_shapes={"args": tuple(shapes)},
            custom_translation_table=translation_table(),
            verbose=False,
        )
    proto = program.model_proto
    for value, tensor in zip(proto.graph.output, stage.outputs.values(), strict=True):
        for axis, dim in enumerate(tensor.dims):  # the tracer makes up symbols of its own
            if isinstance(dim, str):
                value.type.tensor_type.shape.dim[axis].dim_param = dim
    return proto
