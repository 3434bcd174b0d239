"""Plans run on host memory by their op's oracle, and what is to go wrong while they do."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plugins.dtypes import DTYPES
from plugins.plan import Plan, shape_of
from plugins.registry import OPS

if TYPE_CHECKING:
    import torch

FAULTS = "TURBOTRT_FAULTS"


def faults() -> dict[str, str]:
    """What goes wrong in this process: an op, or a stage and its L as "block 108" → kind."""
    found: dict[str, str] = json.loads(os.environ.get(FAULTS, "{}"))
    return found


def host_view(address: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A torch tensor over host memory."""
    import torch

    from plugins.torch_dtypes import torch_dtype

    count = int(np.prod(shape)) * DTYPES[dtype].bytes
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
    return torch.from_numpy(raw).view(torch_dtype(dtype)).view(shape)


class HostExecutor:
    """What runs a plan here: the op's oracle, on host memory."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def workspace_bytes(self, shapes: Sequence[Sequence[int]]) -> int:
        return 256

    def run(
        self,
        shapes: Sequence[Sequence[int]],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        import torch

        from plugins.torch_op import reference

        symbols = self.plan.bind(shapes)
        given = [
            host_view(address, tuple(shape), spec.dtype)
            for address, shape, spec in zip(inputs, shapes, self.plan.inputs, strict=True)
        ]
        found = reference(OPS[self.plan.op])(*given, **self.plan.attributes)
        wrong = faults().get(self.plan.op) == "wrong"
        for address, spec, value in zip(
            outputs, self.plan.outputs, found if isinstance(found, tuple) else (found,), strict=True
        ):
            assert value.element_size() == DTYPES[spec.dtype].bytes
            host_view(address, shape_of(spec, symbols), spec.dtype).copy_(torch.zeros_like(value) if wrong else value)


def patch_executor() -> None:
    """Let plans run on the host in this process, whoever has imported what runs them before."""
    from plugins import executor

    real: Any = executor.PlanExecutor
    for module in [module for name, module in sys.modules.items() if name.startswith(("plugins.", "exporter."))]:
        if getattr(module, "PlanExecutor", None) is real:
            vars(module)["PlanExecutor"] = HostExecutor
