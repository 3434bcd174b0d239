"""Stage functions traced on meta tensors to ONNX: named inputs, weights as inputs, the number of tokens L dynamic."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from exporter import stages
from exporter.models import FREQ_DIM, TEXT_DIM, TEXT_LENGTH, ModelSpec
from exporter.stages import BlockOptions
from exporter.weights import Stage, stage_weights
from plugins.onnx_schema import translation_table
from plugins.torch_op import torch_dtype

L = "L"
OPSET = 20
_TRACE_LENGTH = 1000  # any length that is no other dimension


@dataclass(frozen=True)
class StageInput:
    """One activation input of a stage: dtype name and dims, where "L" is the number of tokens."""

    dtype: str
    dims: tuple[int | str, ...]


def activation_inputs(model: ModelSpec, stage: Stage) -> dict[str, StageInput]:
    """A stage's inputs other than weights, in order."""
    d, state = model.dim, StageInput("fp32", (L, 64))
    if stage == "embed":
        inputs = {
            "tokens": state,
            "time_features": StageInput("fp32", (1, FREQ_DIM)),
            "text": StageInput("bf16", (TEXT_LENGTH, TEXT_DIM)),
        }
        condition = StageInput("fp32", (L, model.patch_features - 64))
        return inputs | ({"condition": condition} if model.image_to_video else {})
    x = StageInput("bf16", (L, d))
    if stage == "block":
        angle = StageInput("fp32", (L, 64))
        return {
            "x": x,
            "context": StageInput("bf16", (TEXT_LENGTH, d)),
            "e0": StageInput("fp32", (6, d)),
            "cos": angle,
            "sin": angle,
        }
    scalar = StageInput("fp32", (1,))
    e = StageInput("fp32", (1, d))
    return {"x": x, "e": e, "tokens": state, "noise": state, "a": scalar, "b": scalar, "c": scalar}


OUTPUTS: dict[Stage, tuple[str, ...]] = {
    "embed": ("x", "context", "e", "e0"),
    "block": ("x",),
    "head": ("tokens", "v"),
}
OUTPUT_SUFFIX = "_out"  # a stage may give what it takes: ONNX needs two names


def stage_function(stage: Stage, options: BlockOptions) -> Callable[..., Any]:
    """The stage as a function of its activation inputs, in order, and the mapping of weights."""
    if stage == "embed":
        return lambda tokens, time_features, text, *rest: stages.embed(
            tokens, time_features, text, rest[-1], *rest[:-1]
        )
    if stage == "block":
        return lambda x, context, e0, cos, sin, weights: stages.block(x, context, e0, cos, sin, weights, options)
    return stages.head


class _StageModule(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[..., Any], activations: int, weights: tuple[str, ...]):
        super().__init__()
        self.function, self.activations, self.weights = function, activations, weights

    def forward(self, *args: torch.Tensor) -> Any:
        weights = dict(zip(self.weights, args[self.activations :], strict=True))
        return self.function(*args[: self.activations], weights)


def trace(model: ModelSpec, stage: Stage, options: BlockOptions) -> Any:
    """The stage's onnx.ModelProto. Nothing is allocated: parameters and inputs are meta tensors."""
    activations = activation_inputs(model, stage)
    weights = stage_weights(model, stage, options.linear)
    module = _StageModule(stage_function(stage, options), len(activations), tuple(weights))
    length = torch.export.Dim(L, min=2, max=1 << 17)
    args, shapes = [], []
    for spec in activations.values():
        dims = [_TRACE_LENGTH if dim == L else dim for dim in spec.dims]
        args.append(torch.empty(dims, dtype=torch_dtype(spec.dtype), device="meta"))
        shapes.append({axis: length for axis, dim in enumerate(spec.dims) if dim == L} or None)
    for weight in weights.values():
        args.append(torch.empty(weight.shape, dtype=torch_dtype(weight.dtype), device="meta"))
        shapes.append(None)
    outputs = [f"{name}{OUTPUT_SUFFIX}" for name in OUTPUTS[stage]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for noisy in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            tuple(args),
            dynamo=True,
            opset_version=OPSET,
            input_names=[*activations, *weights],
            output_names=outputs,
            dynamic_shapes={"args": tuple(shapes)},
            custom_translation_table=translation_table(),
            verbose=False,
        )
    return program.model_proto
