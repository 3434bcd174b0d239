"""Our ops seen from outside: who runs them, what they gave, and what each should have given.

Stage functions reach the ops through the torch dispatcher (``plugins.torch_op``), so a dispatch mode sees each call of
whatever ops there are, and neither the stages nor the ops know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from exporter.packing.quantize import block_dequantize
from plugins.op import AttrValue, Op
from plugins.registry import OPS
from plugins.torch_op import NAMESPACE, reference

SCALE = "_scale"  # an INT8 tensor "y" and its block scales "y_scale" are one value
_NARROW = frozenset((torch.int8, torch.bfloat16, torch.float16, torch.float8_e4m3fn))


@dataclass(frozen=True)
class Call:
    """One call of an op: its inputs, its attributes by name, and what a report calls it (``call_label``)."""

    op: Op
    inputs: tuple[Tensor, ...]
    attributes: Mapping[str, AttrValue]
    label: str


def call_label(op: str, operands: Sequence[str | None]) -> str:
    """ "BlockInt8GemmResidual self_attn.o" for an op with weights, "BlockInt8Quantize(SageSLA)" for one without.

    ``operands`` says of each input what it is: a weight ("self_attn.o.scale"), an input of the stage ("x"), the label
    of the op that made it, or None. The label thus does not depend on the order of calls.
    """
    modules = [name.rpartition(".")[0] for name in operands if name and "." in name and not set(" (") & set(name)]
    if modules:
        return f"{op} {modules[0]}"
    made_by = next((name for name in operands if name), "")
    _, space, module = made_by.partition(" ")
    return f"{op}({module if space else made_by.partition('(')[0]})"


Outputs = tuple[Tensor, ...]
Evaluate = Callable[[Call], Outputs]


def by_reference(call: Call) -> Outputs:
    """The op's oracle, on whatever device the inputs are."""
    out = reference(call.op)(*call.inputs, **call.attributes)
    return out if isinstance(out, tuple) else (out,)


class Intercept(TorchDispatchMode):  # type: ignore[misc]
    """Lets ``evaluate`` answer every call of our ops while it is entered. ``names``: the stage's inputs and weights."""

    def __init__(self, evaluate: Evaluate, names: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self._evaluate = evaluate
        self._names: WeakIdKeyDictionary = WeakIdKeyDictionary()  # a tensor's id may be another's after it is freed
        for name, tensor in (names or {}).items():
            self._names[tensor] = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != NAMESPACE:
            return func(*args, **(kwargs or {}))
        op = OPS[func.__name__.partition(".")[0]]
        inputs, count = tuple(args[: len(op.inputs)]), len(op.inputs)
        attributes = op.attribute_values({a.name: v for a, v in zip(op.attributes, args[count:], strict=False)})
        label = call_label(op.name, [self._names.get(tensor) for tensor in inputs])
        out = self._evaluate(Call(op, inputs, attributes, label))
        for tensor in out:
            self._names[tensor] = label
        return out if len(out) > 1 else out[0]


class Unrounded(TorchFunctionMode):  # type: ignore[misc]
    """Evaluates oracles as if nothing were rounded: no bf16, no INT8, no saturation; all in fp32.

    Quantization then is a multiplication whose scale undoes it, so that any op, fused or not, computes in fp32 what it
    approximates. Only casts to narrow dtypes, rounding and two-sided clamps are left out: all else is as written.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("bfloat16", "half"):
            return args[0].float()
        if name == "to" and _target(args, kwargs) in _NARROW:
            return args[0].float()
        if name == "round" or (name == "clamp" and _two_sided(args, kwargs)):
            return args[0]
        return func(*args, **kwargs)


def _target(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("dtype", next((arg for arg in args[1:] if isinstance(arg, torch.dtype)), None))


def _two_sided(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    return low is not None and high is not None


def unrounded(call: Call) -> Outputs:
    """The op's oracle in fp32 throughout."""
    with Unrounded():
        return by_reference(call)


def values(op: Op, outputs: Outputs) -> dict[str, Tensor]:
    """The op's outputs as numbers: a tensor and its scales become one, under the tensor's name."""
    named = dict(zip((out.name for out in op.outputs), outputs, strict=True))
    return {
        name: block_dequantize(tensor, named[name + SCALE]) if name + SCALE in named else tensor
        for name, tensor in named.items()
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) in named)
    }


def labelled(call: Call, outputs: Outputs) -> dict[str, Tensor]:
    """``values`` under the call's label, with the output's name where there are several."""
    named = values(call.op, outputs)
    return {f"{call.label}: {name}" if len(named) > 1 else call.label: tensor for name, tensor in named.items()}


class Recorder:
    """An evaluation that remembers each call and what it gave. Raises ValueError if two calls have one label."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self.calls: dict[str, tuple[Call, Outputs]] = {}

    def __call__(self, call: Call) -> Outputs:
        if call.label in self.calls:
            raise ValueError(f"two calls are {call.label!r}")
        out = self._evaluate(call)
        self.calls[call.label] = (call, out)
        return out


class Replay:
    """Evaluates each call on what the recorded run fed it, with this run's own weights, tables and options.

    It answers with the recorded output, so that an error shows at the op that made it and at no other.
    ``expected`` fills with what each op should have given. Raises ValueError on a call that was not recorded.
    """

    def __init__(self, evaluate: Evaluate, recorded: Mapping[str, tuple[Call, Outputs]]) -> None:
        self._evaluate = evaluate
        self._recorded = recorded
        self.expected: dict[str, Tensor] = {}

    def __call__(self, call: Call) -> Outputs:
        if call.label not in self._recorded:
            raise ValueError(f"{call.label!r} was not called, but {', '.join(self._recorded)}")
        self.expected |= labelled(call, self._evaluate(call))
        device = call.inputs[0].device  # the recorded run may have been on another
        return tuple(tensor.to(device) for tensor in self._recorded[call.label][1])
