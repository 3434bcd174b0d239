"""One TensorRT plugin class and creator for every op, made from the launch plan alone.

The plan is the only field: the ONNX node carries it as a string attribute, the engine serializes it, and a runtime
rebuilds the plugin from it. Importing this module imports no TensorRT; the flavour's module is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from plugins.dtypes import DTYPES
from plugins.expr import Dim, evaluate, fold, from_plain
from plugins.plan import Plan, TensorSpec, decode

if TYPE_CHECKING:
    from plugins.executor import PlanExecutor

PLAN_FIELD = "plan"
PLUGIN_VERSION = "1"
NAMESPACE = ""  # the ONNX parser looks plugins up in the empty namespace, whatever the node's domain


def tensorrt_dims(trt: Any, dim: Dim, inputs: Any, plan: Plan, builder: Any) -> Any:
    """A dim as TensorRT's IDimensionExpr over the plugin's input dims."""
    operation = trt.DimensionOperation
    operators = {
        "+": operation.SUM,
        "-": operation.SUB,
        "*": operation.PROD,
        "//": operation.FLOOR_DIV,
        "ceil_div": operation.CEIL_DIV,
        "max": operation.MAX,
        "min": operation.MIN,
    }

    def named(name: str) -> Any:
        index, axis = plan.symbols[name]
        return inputs[index][axis]

    return fold(dim, builder.constant, named, lambda op, a, b: builder.operation(operators[op], a, b))


class _PlanBehaviour:
    """What TensorRT asks of a plugin, answered from its launch plan. ``trt`` is the flavour's module."""

    trt: Any
    data: bytes

    def take(self, data: bytes) -> None:
        """Become the plugin of this plan; the attributes are those that TensorRT reads."""
        self.data = data
        self.plan = decode(data)
        self.plugin_name = self.plan.op
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = NAMESPACE
        self.num_outputs = len(self.plan.outputs)
        self.timing_cache_id = ""
        self._executor: PlanExecutor | None = None

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def clone(self) -> Any:
        return plugin_class(self.trt)(self.data)

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def get_output_data_types(self, input_types: Any) -> Any:
        return [self._type(spec) for spec in self.plan.outputs]

    def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
        def dims(spec: TensorSpec) -> Any:
            return [tensorrt_dims(self.trt, from_plain(dim), inputs, self.plan, builder) for dim in spec.shape]

        return [self.trt.DimsExprs(dims(spec)) for spec in self.plan.outputs]

    def supports_format_combination(self, position: int, in_out: Any, num_inputs: int) -> bool:
        spec = [*self.plan.inputs, *self.plan.outputs][position]
        described = in_out[position].desc
        return bool(described.format == self.trt.TensorFormat.LINEAR and described.type == self._type(spec))

    def _type(self, spec: TensorSpec) -> Any:
        return getattr(self.trt.DataType, DTYPES[spec.dtype].tensorrt)

    def configure_plugin(self, inputs: Any, outputs: Any) -> None:
        pass

    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, tactic: int) -> None:
        pass

    def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
        maxima = [tuple(described.max) for described in inputs]
        return evaluate(self.plan.workspace_bytes, self.plan.bind(maxima))

    def on_shape_change(self, inputs: Any, outputs: Any) -> None:
        self.plan.bind([tuple(described.dims) for described in inputs])

    def enqueue(self, inputs: Any, outputs: Any, in_ptrs: Any, out_ptrs: Any, workspace: int, stream: int) -> int:
        try:
            self._launch([tuple(described.dims) for described in inputs], in_ptrs, out_ptrs, workspace, stream)
        except Exception as error:  # TensorRT prints it, and does not say whose it is
            raise RuntimeError(f"{self.plan.op} could not be enqueued: {error}") from error
        return 0

    def _launch(self, shapes: Any, in_ptrs: Any, out_ptrs: Any, workspace: int, stream: int) -> None:
        if self._executor is None:
            from plugins.executor import PlanExecutor

            self._executor = PlanExecutor(self.plan)
        self._executor.run(shapes, list(in_ptrs), list(out_ptrs), workspace, stream)

    def get_fields_to_serialize(self) -> Any:
        field = self.trt.PluginField(PLAN_FIELD, self.data, self.trt.PluginFieldType.CHAR)
        return self.trt.PluginFieldCollection([field])


@cache
def plugin_class(trt: Any) -> Any:
    """The IPluginV3 of this flavour of TensorRT."""
    interfaces = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)

    class PlanPlugin(_PlanBehaviour, *interfaces):  # type: ignore[misc]
        """Runs one launch plan."""

        def __init__(self, data: bytes):
            for interface in interfaces:
                interface.__init__(self)
            self.trt = trt
            self.take(data)

    return PlanPlugin


@cache
def creator_class(trt: Any) -> Any:
    """The IPluginCreatorV3One of this flavour of TensorRT."""

    class PlanPluginCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes plugins of one op from the plan in their only field."""

        def __init__(self, op: str):
            trt.IPluginCreatorV3One.__init__(self)
            self.name = op
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = NAMESPACE
            field = trt.PluginField(PLAN_FIELD, b"", trt.PluginFieldType.CHAR)
            self.field_names = trt.PluginFieldCollection([field])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            data = {field.name: bytes(field.data) for field in fields}.get(PLAN_FIELD)
            if data is None:
                raise ValueError(f"{self.name} node {name!r} carries no launch plan")
            plan = decode(data)
            if plan.op != self.name:
                raise ValueError(f"node {name!r} is {self.name}, its plan is for {plan.op}")
            return plugin_class(trt)(data)

    return PlanPluginCreator


_registered: dict[str, list[Any]] = {}


def is_registered(trt: Any) -> bool:
    """Whether ``register`` was called for this flavour in this process."""
    return trt.__name__ in _registered


def register(trt: Any, ops: Iterable[str]) -> None:
    """Register a creator for each op with TensorRT's plugin registry, once a process."""
    if is_registered(trt):
        return
    make: Callable[[str], Any] = creator_class(trt)
    creators = [make(op) for op in ops]
    for creator in creators:
        trt.get_plugin_registry().register_creator(creator, NAMESPACE)
    _registered[trt.__name__] = creators  # the registry keeps no Python reference
