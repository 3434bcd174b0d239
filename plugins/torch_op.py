"""The torch custom op of every declaration: fake kernel from its shapes, reference on CPU, compiled plan on CUDA."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, cast

import torch

from plugins.executor import PlanExecutor
from plugins.expr import fold
from plugins.op import AttrValue, Op
from plugins.plan import decode, shape_of
from plugins.plan_cache import local_plan
from plugins.registry import OPS
from plugins.sms import sm_number
from plugins.torch_dtypes import torch_dtype

NAMESPACE = "turbotrt"


def device_sm(device: torch.device | None = None) -> int:
    """Compute capability of a CUDA device, the current one if not given, as 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return sm_number(int(major), int(minor))


def reference(op: Op) -> Callable[..., Any]:
    """The op's fp32 oracle."""
    module = importlib.import_module(f"plugins.{op.folder}.reference")
    return getattr(module, op.reference_function)  # type: ignore[no-any-return]


def _symbolic(op: Op, shapes: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {name: shapes[index][axis] for name, (index, axis) in op.symbol_sources().items()}


def _evaluate(dim: Any, symbols: dict[str, Any]) -> Any:
    """Like expr.evaluate, for ints and torch SymInts alike."""
    operations: dict[str, Callable[[Any, Any], Any]] = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "//": lambda a, b: a // b,
        "ceil_div": lambda a, b: (a + b - 1) // b,
        "max": torch.sym_max,
        "min": torch.sym_min,
    }
    return fold(dim, lambda value: value, lambda name: symbols[name], lambda op, a, b: operations[op](a, b))


def _fake(op: Op) -> Callable[..., Any]:
    def fake(*args: Any) -> Any:
        inputs = args[: len(op.inputs)]
        symbols = _symbolic(op, [tensor.shape for tensor in inputs])
        outputs = tuple(
            inputs[0].new_empty([_evaluate(dim, symbols) for dim in out.dims], dtype=torch_dtype(out.dtype))
            for out in op.outputs
        )
        return outputs if len(outputs) > 1 else outputs[0]

    return fake


@lru_cache(maxsize=256)
def executor(plan: bytes, device: int) -> PlanExecutor:
    """The loaded plan on a CUDA device; loaded once a process."""
    with torch.cuda.device(device):
        torch.cuda.current_stream()
        return PlanExecutor(decode(plan))


def run_plan(plan: bytes, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run an encoded plan on contiguous CUDA tensors, on torch's current stream; returns new outputs."""
    device = inputs[0].device
    loaded = executor(plan, device.index)
    shapes = [tuple(tensor.shape) for tensor in inputs]
    symbols = loaded.plan.bind(shapes)
    outputs = [
        torch.empty(shape_of(s, symbols), dtype=torch_dtype(s.dtype), device=device) for s in loaded.plan.outputs
    ]
    workspace = torch.empty(max(1, loaded.workspace_bytes(shapes)), dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    loaded.run(shapes, [t.data_ptr() for t in inputs], [t.data_ptr() for t in outputs], workspace.data_ptr(), stream)
    return outputs


def _implementation(op: Op) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        inputs = [tensor.contiguous() for tensor in args[: len(op.inputs)]]
        attributes = {a.name: value for a, value in zip(op.attributes, args[len(op.inputs) :], strict=True)}
        _check(op, inputs)
        if inputs[0].is_cuda:
            symbols = op.bind([tuple(tensor.shape) for tensor in inputs])
            outputs = tuple(run_plan(local_plan(op, symbols, attributes, device_sm(inputs[0].device)), inputs))
            return outputs if len(outputs) > 1 else outputs[0]
        return reference(op)(*inputs, **attributes)

    return run


def _check(op: Op, inputs: Sequence[torch.Tensor]) -> None:
    op.bind([tuple(tensor.shape) for tensor in inputs])
    for declared, tensor in zip(op.inputs, inputs, strict=True):
        if tensor.dtype != torch_dtype(declared.dtype):
            raise ValueError(f"{op.name}: {declared.name} is {tensor.dtype}, expected {torch_dtype(declared.dtype)}")


def _signature(op: Op, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the explicit, annotated parameters torch.library infers a schema from."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(t.name, kind, annotation=torch.Tensor) for t in op.inputs]
    parameters += [inspect.Parameter(a.name, kind, annotation=type(a.default)) for a in op.attributes]
    result: Any = torch.Tensor if len(op.outputs) == 1 else tuple.__class_getitem__((torch.Tensor,) * len(op.outputs))
    function.__signature__ = inspect.Signature(parameters, return_annotation=result)  # type: ignore[attr-defined]
    return function


@cache
def torch_op(name: str) -> Callable[..., Any]:
    """The custom op ``turbotrt::<name>``; called with the inputs, then the attributes, all positional.

    Not by ``torch.library.custom_op``: its wrappers import torch._dynamo at the first call, which takes seconds.
    """
    op, library = OPS[name], _library()
    function = _signature(op, _implementation(op))
    schema = torch.library.infer_schema(function, mutates_args=())
    library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", _fake(op), lib=library)
    return cast(Callable[..., Any], getattr(getattr(torch.ops, NAMESPACE), name).default)


@cache
def _library() -> torch.library.Library:
    """Where the ops are registered; they are gone with it."""
    return torch.library.Library(NAMESPACE, "FRAGMENT")


def call(name: str, *inputs: torch.Tensor, **attributes: AttrValue) -> Any:
    """Call an op with its attributes by name, defaults filled in."""
    op = OPS[name]
    values = op.attribute_values(attributes)
    return torch_op(name)(*inputs, *(values[attr.name] for attr in op.attributes))
