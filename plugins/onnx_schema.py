"""ONNX side of the ops: registered schemas in our own domain, and the exporter's translation table."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from plugins.dtypes import DTYPES
from plugins.op import Op, Tensor
from plugins.registry import OPS
from plugins.torch_op import NAMESPACE, torch_op

DOMAIN = "turbotrt"
VERSION = 1
#: The attribute that the passes attach: the encoded launch plan.
PLAN_ATTRIBUTE = "plan"


def _schema(op: Op) -> Any:
    from onnx import defs

    def parameter(tensor: Tensor) -> Any:
        return defs.OpSchema.FormalParameter(tensor.name, f"tensor({DTYPES[tensor.dtype].onnx.lower()})")

    types = {int: defs.OpSchema.AttrType.INT, str: defs.OpSchema.AttrType.STRING}
    attributes = [defs.OpSchema.Attribute(a.name, types[type(a.default)], required=False) for a in op.attributes]
    plan = defs.OpSchema.Attribute(PLAN_ATTRIBUTE, defs.OpSchema.AttrType.STRING, required=False)
    return defs.OpSchema(
        op.name,
        DOMAIN,
        VERSION,
        inputs=[parameter(t) for t in op.inputs],
        outputs=[parameter(t) for t in op.outputs],
        attributes=[*attributes, plan],
        doc=f"turbotrt {op.name}: see plugins/{op.folder}/reference.py.",
    )


@lru_cache(maxsize=1)
def register_schemas() -> None:
    """Register every op's schema with onnx, once a process."""
    from onnx import defs

    for op in OPS.values():
        defs.register_schema(_schema(op))


def _translation(op: Op, opset: Any) -> Callable[..., Any]:
    """The function the dynamo exporter calls with the custom op's arguments, attributes included, in order."""

    def translate(*args: Any) -> Any:
        count = len(op.inputs)
        attributes = {attr.name: value for attr, value in zip(op.attributes, args[count:], strict=True)}
        return getattr(opset, op.name)(*args[:count], **attributes)

    return translate


def translation_table() -> dict[Any, Callable[..., Any]]:
    """``custom_translation_table`` for torch.onnx.export: each torch op to its node in our domain."""
    import torch
    from onnxscript.values import Opset

    register_schemas()
    opset = Opset(DOMAIN, VERSION)
    for name in OPS:
        torch_op(name)
    namespace = getattr(torch.ops, NAMESPACE)
    return {getattr(namespace, name).default: _translation(op, opset) for name, op in OPS.items()}
