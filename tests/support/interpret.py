"""Cases for Triton's interpreter, which interpreter_process runs in its own process, and a plan as it runs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from triton.experimental.gluon._runtime import GluonJITFunction

from plugins.dtypes import DTYPES
from plugins.expr import evaluate
from plugins.plan_builder import LaunchPlan

#: Names of the kernels that ran in this process.
RAN: set[str] = set()


@dataclass(frozen=True)
class Case:
    """One check, by a name that tells its function and arguments."""

    name: str
    function: Callable[[], None]
    module: str

    def run(self) -> None:
        """Raises AssertionError. Only where TRITON_INTERPRET=1 was set before triton was imported."""
        torch.manual_seed(0)
        self.function()


def case(function: Callable[..., None], *arguments: str | int, **options: bool) -> Case:
    """The call of a function as a case."""
    words = [function.__name__, *map(str, arguments), *(name for name, given in options.items() if given)]
    return Case(" ".join(words), lambda: function(*arguments, **options), function.__module__)


def run_plan(plan: LaunchPlan, tensors: dict[str, torch.Tensor], symbols: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Run every launch on the CPU but those of Gluon kernels, which the interpreter does not know. ``tensors`` holds
    inputs and outputs (written in place); returns the workspace too.

    Workspace starts as garbage (bytes 0x7F: NaN for floats, large for integers), because on a GPU nothing zeroes it.
    """
    bound = dict(tensors)
    for buffer in plan.buffers:
        dtype = getattr(torch, DTYPES[buffer.dtype].torch)
        shape = [evaluate(dim, symbols) for dim in buffer.shape]
        bound[buffer.name] = torch.full([*shape, dtype.itemsize], 0x7F, dtype=torch.uint8).view(dtype).squeeze(-1)
    for launch in plan.launches:
        if isinstance(launch.kernel, GluonJITFunction):
            continue
        grid = tuple(evaluate(dim, symbols) for dim in launch.grid)
        args = {
            name: bound[value] if isinstance(value, str) else evaluate(value, symbols)
            for name, value in launch.args.items()
        }
        options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        RAN.add(launch.kernel.__name__)
        launch.kernel[grid](**args, **launch.constants, **options)
    return bound
