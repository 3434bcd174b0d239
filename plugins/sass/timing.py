"""How fast a whole kernel multiplies, by the model of its main loop and a simulation of the rest of its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugins.plan import KernelImage
from plugins.sass.control_flow import loops, parse
from plugins.sass.listing import listings
from plugins.sass.model import LoopModel, main_model
from plugins.sass.report import main_loops, resident_blocks
from plugins.sass.schedule import iteration_cycles
from plugins.sms import Rates

_ROUNDS, _WARM_UP = 3, 1  # of the code outside, which is long


@dataclass(frozen=True)
class KernelTiming:
    """The main loop, and cycles in which the ``resident`` programs of an SM do all that lies outside main loops, once.

    Which of two branches a program takes is not known: both count.
    """

    loop: LoopModel
    outside: float
    resident: int

    def rate(self, operations: float, programs: int) -> float:
        """Tensor operations a clock of an SM, where so many programs do so many operations."""
        inside = operations / self.loop.operations * self.loop.iteration
        return operations / (inside + programs / self.resident * self.outside)


def timings(kernels: Sequence[KernelImage], sm: int, rates: Rates) -> list[KernelTiming | None]:
    """Of each kernel of plans for an SM; None where it has no main loop of mma.sync."""
    texts = listings([kernel.cubin for kernel in kernels])
    return [_timing(kernel, text, sm, rates) for kernel, text in zip(kernels, texts, strict=True)]


def _timing(kernel: KernelImage, listing: str, sm: int, rates: Rates) -> KernelTiming | None:
    code = parse(listing)
    mains = main_loops(code, loops(code))
    resident = resident_blocks(kernel, sm)
    warps, block = resident * kernel.num_warps, kernel.num_warps
    if (loop := main_model(code, mains, rates, warps, block)) is None:
        return None
    inside = frozenset[int]().union(*mains)
    outside = [instruction for at, instruction in enumerate(code) if at not in inside]
    return KernelTiming(loop, iteration_cycles(outside, rates, warps, block, _ROUNDS, _WARM_UP), resident)
