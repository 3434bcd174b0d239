"""Ops answered by compiled launch plans on a CUDA device: the bundle's own where they are for its GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from exporter.compare.machines.ops import Call, Outputs
from plugins.compile import plan_bytes
from plugins.errors import UserError
from plugins.plan import Plan
from plugins.torch_op import run_plan
from runtime.checks import read_plan


class PlanOps:
    """An evaluation by plans. Plans of another SM than the device's cannot run: the same ops are compiled for it."""

    def __init__(self, files: Iterable[Path], sm: int, device_sm: int) -> None:
        self._device_sm = device_sm
        self.recompiled = sm != device_sm
        self._plans: list[tuple[Plan, bytes]] = [] if self.recompiled else [_read(path) for path in files]

    def __call__(self, call: Call) -> Outputs:
        inputs = [tensor.contiguous() for tensor in call.inputs]
        return tuple(run_plan(self.plan(call, inputs), inputs))

    def plan(self, call: Call, inputs: Sequence[Tensor]) -> bytes:
        """Raises ValueError if the bundle holds no plan of this op for these shapes and attributes."""
        shapes = [tuple(tensor.shape) for tensor in inputs]
        if self.recompiled:
            return plan_bytes(call.op, call.op.bind(shapes), dict(call.attributes), self._device_sm)
        for plan, data in self._plans:
            if plan.op == call.op.name and plan.attributes == dict(call.attributes) and _fits(plan, shapes):
                return data
        raise ValueError(f"the bundle holds no plan of {call.label} for {shapes} and {dict(call.attributes)}")


def _read(path: Path) -> tuple[Plan, bytes]:
    """A bundle's plan, decoded and as it is. Raises UserError."""
    try:
        return read_plan(path)
    except ValueError as error:
        raise UserError(
            f"{path} is not a launch plan that this turbotrt runs.", got=str(error), remedy="export the bundle again"
        ) from error


def _fits(plan: Plan, shapes: Sequence[Sequence[int]]) -> bool:
    try:
        plan.bind(shapes)
    except ValueError:
        return False
    return True
