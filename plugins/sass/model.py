"""A model of a main loop from its SASS: what each unit of the SM has to do in an iteration, and how long that takes.

For kernels that multiply by mma.sync. The time is a simulation's (schedule.py): the longest unit's where warps hide
one another's latencies, and more where they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from plugins.sass.control_flow import Instruction, usual_path
from plugins.sass.schedule import iteration_cycles
from plugins.sass.units import MMA, UNITS, WARP_MMA, operations, use
from plugins.sms import PARTITIONS, Rates


@dataclass(frozen=True)
class LoopModel:
    """One iteration by all resident warps of an SM: cycles of each unit, the unit with the most, cycles in all.

    ``share``: of that time, what the tensor cores are busy for; ``operations``: multiplications and additions on them.
    """

    instructions: int
    cycles: Mapping[str, float]
    bound: str
    iteration: float
    share: float
    operations: float


@lru_cache(maxsize=256)
def loop_model(code: tuple[Instruction, ...], rates: Rates, warps: int, block: int) -> LoopModel | None:
    """The model of a loop's code with ``warps`` warps an SM, ``block`` of them a block.

    None where the products are not mma.sync's: other forms run beside the warps that issue them.
    """
    products = [instruction for instruction in code if MMA.fullmatch(instruction.opcode)]
    if not products or not {instruction.opcode for instruction in products} <= WARP_MMA:
        return None
    times = warps / PARTITIONS
    cycles = dict.fromkeys(UNITS, 0.0) | {"issue": times * len(code)}
    for instruction in code:
        taken = use(instruction, rates)
        if taken.unit != "issue":
            cycles[taken.unit] += times * taken.cycles
        cycles["ports"] += times * taken.beside
        cycles["l2"] += times * taken.l2
    cycles["ports"] += cycles["tensor"]
    iteration = iteration_cycles(code, rates, warps, block)
    return LoopModel(
        instructions=len(code),
        cycles=cycles,
        bound=max(UNITS, key=lambda unit: cycles[unit]),
        iteration=iteration,
        share=cycles["tensor"] / iteration,
        operations=warps * sum(operations(instruction) for instruction in products),
    )


def main_model(
    code: Sequence[Instruction], loops: Sequence[frozenset[int]], rates: Rates, warps: int, block: int
) -> LoopModel | None:
    """Of a kernel's main loops, as indices into its code, the one that multiplies most; of equal ones the fastest."""
    every = [loop_model(tuple(code[at] for at in usual_path(code, loop)), rates, warps, block) for loop in loops]
    found = [model for model in every if model is not None]
    return max(found, key=lambda model: (model.operations, -model.iteration), default=None)
