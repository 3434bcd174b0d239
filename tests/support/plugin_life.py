"""The life TensorRT gives a plugin, walked by hand: made from fields, cloned, asked, serialized, rebuilt, attached."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from plugins.dtypes import DTYPES
from plugins.expr import OPERATORS
from plugins.plan import Plan, TensorSpec, shape_of
from plugins.tensorrt_plugin import PLAN_FIELD, creator_class, tensorrt_dims
from tests.support.exported import Exported


def every_ops_plans(exported: Exported) -> dict[str, bytes]:
    """Name → plan bytes: those of the bundle's nodes, and one of each op that only other options use."""
    from plugins.compile import plan_bytes
    from plugins.plan import decode
    from plugins.registry import OPS
    from runtime.bundle import load_manifest

    found = {n: (exported.folder / file).read_bytes() for n, file in load_manifest(exported.folder).plans.items()}
    used = {decode(data).op for data in found.values()}
    static = {"D": 256, "E": 256, "N": 384, "K": 256}
    others = [op for name, op in OPS.items() if name not in used]
    return found | {
        op.name: plan_bytes(op, {n: static.get(n, 0) for n in op.symbol_sources()}, {}, 120) for op in others
    }


class IntExprBuilder:
    """An IExprBuilder over plain ints. ``asked`` keeps the operations."""

    def __init__(self, trt: Any):
        operation = trt.DimensionOperation
        self._names = {
            operation.SUM: "+",
            operation.SUB: "-",
            operation.PROD: "*",
            operation.FLOOR_DIV: "//",
            operation.CEIL_DIV: "ceil_div",
            operation.MAX: "max",
            operation.MIN: "min",
        }
        self.asked: list[str] = []

    def constant(self, value: int) -> int:
        return value

    def operation(self, operation: Any, a: int, b: int) -> int:
        name = self._names[operation]
        self.asked.append(name)
        return OPERATORS[name](a, b)


def shapes(specs: Sequence[TensorSpec], symbols: dict[str, int]) -> list[tuple[int, ...]]:
    return [shape_of(spec, symbols) for spec in specs]


def symbols_at(plan: Plan, length: int) -> dict[str, int]:
    """Every dynamic symbol of the plan set to the number of tokens."""
    return dict.fromkeys(plan.symbols, length)


def data_type(trt: Any, spec: TensorSpec) -> Any:
    return getattr(trt.DataType, DTYPES[spec.dtype].tensorrt)


def collection(trt: Any, data: bytes, name: str = PLAN_FIELD) -> Any:
    return trt.PluginFieldCollection([trt.PluginField(name, data, trt.PluginFieldType.CHAR)])


def described(trt: Any, plan: Plan) -> list[SimpleNamespace]:
    """What supports_format_combination is asked about: every tensor linear and of its declared dtype."""
    specs = [*plan.inputs, *plan.outputs]
    return [
        SimpleNamespace(desc=SimpleNamespace(format=trt.TensorFormat.LINEAR, type=data_type(trt, spec)))
        for spec in specs
    ]


def dims(found: Sequence[tuple[int, ...]]) -> list[SimpleNamespace]:
    """Tensor descriptions as on_shape_change (dims) and get_workspace_size (max) read them."""
    return [SimpleNamespace(dims=shape, max=shape) for shape in found]


def create(trt: Any, op: str, data: bytes, phase: Any) -> Any:
    return creator_class(trt)(op).create_plugin(f"node of {op}", collection(trt, data), phase)


def reborn(trt: Any, plugin: Any) -> Any:
    """The plugin a runtime makes of what this one serializes; TensorRT appends a NUL to a field of characters."""
    (field,) = plugin.get_fields_to_serialize()
    assert field.name == PLAN_FIELD
    return create(trt, plugin.plan.op, bytes(field.data) + b"\0", trt.TensorRTPhase.RUNTIME)


def output_shapes(trt: Any, plan: Plan, length: int) -> list[tuple[int, ...]]:
    """The plan's output shapes through TensorRT's shape expressions."""
    from plugins.expr import from_plain

    builder = IntExprBuilder(trt)
    inputs = shapes(plan.inputs, symbols_at(plan, length))
    return [
        tuple(tensorrt_dims(trt, from_plain(dim), inputs, plan, builder) for dim in spec.shape) for spec in plan.outputs
    ]
