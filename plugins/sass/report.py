"""What a cubin's machine code shows without a GPU: tensor-core instructions and local memory by loop, occupancy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plugins.plan import KernelImage
from plugins.sass.control_flow import Instruction, loops, parse
from plugins.sass.listing import listings
from plugins.sass.model import LoopModel, main_model
from plugins.sass.units import MMA
from plugins.sms import RESERVED_SHARED, SMS, Rates

LOCAL = frozenset({"LDL", "STL"})


@dataclass(frozen=True)
class KernelReport:
    """One kernel: MMA opcodes of the whole kernel and of its main loops, and how often local memory is touched.

    A main loop is a loop that holds tensor-core instructions and no smaller loop that does. ``stack``: bytes a thread;
    ``shared``: bytes a block; ``warps_per_sm``: resident warps; ``model``: of the main loop that multiplies most, where
    the SM's rates are known and the products are mma.sync's.
    """

    name: str
    mma: Mapping[str, int]
    main_mma: Mapping[str, int]
    main_loops: int
    main_local: int
    loop_local: int
    local: int
    registers: int
    stack: int
    shared: int
    warps_per_sm: int
    occupancy: float
    model: LoopModel | None


def resident_blocks(kernel: KernelImage, sm: int) -> int:
    """Blocks of a kernel that one SM holds (CUDA occupancy calculator: registers go to warps in units of 256)."""
    limits = SMS[sm]
    per_warp = -(-kernel.registers * 32 // 256) * 256
    by_registers = limits.registers // 4 // per_warp * 4 // kernel.num_warps  # an SM's four partitions hold whole warps
    return min(limits.blocks, limits.warps // kernel.num_warps, by_registers, blocks_by_shared(kernel, sm))


def blocks_by_shared(kernel: KernelImage, sm: int) -> int:
    """Blocks of a kernel for which one SM has shared memory."""
    return SMS[sm].shared * 1024 // (kernel.shared + RESERVED_SHARED * 1024)


def _count_local(code: Sequence[Instruction], places: frozenset[int]) -> int:
    return sum(code[at].opcode in LOCAL for at in places)


def main_loops(code: Sequence[Instruction], every: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The innermost among those loops that hold tensor-core instructions, as indices of instructions."""
    found = [loop for loop in every if any(MMA.fullmatch(code[at].opcode) for at in loop)]
    return [loop for loop in found if not any(other < loop for other in found)]


def reports(kernels: Sequence[KernelImage], sm: int, rates: Rates | None) -> list[KernelReport]:
    """A report of each kernel of plans for an SM; ``rates``: what the part's SM does in a clock, if known.

    Raises ValueError where a listing holds no code.
    """
    texts = listings([kernel.cubin for kernel in kernels])
    return [_report(kernel, text, sm, rates) for kernel, text in zip(kernels, texts, strict=True)]


def _report(kernel: KernelImage, listing: str, sm: int, rates: Rates | None) -> KernelReport:
    code = parse(listing)
    if not code:
        raise ValueError(f"nvdisasm printed no instructions for {kernel.name} (sm_{sm})")
    every = loops(code)
    mains = main_loops(code, every)
    inside, looped = frozenset[int]().union(*mains), frozenset[int]().union(*every)

    def mma(places: Sequence[int] | frozenset[int]) -> dict[str, int]:
        return dict(sorted(Counter(code[at].opcode for at in places if MMA.fullmatch(code[at].opcode)).items()))

    everywhere = frozenset(range(len(code)))
    warps = resident_blocks(kernel, sm) * kernel.num_warps
    return KernelReport(
        name=kernel.name,
        mma=mma(everywhere),
        main_mma=mma(inside),
        main_loops=len(mains),
        main_local=_count_local(code, inside),
        loop_local=_count_local(code, looped),
        local=_count_local(code, everywhere),
        registers=kernel.registers,
        stack=kernel.spills,
        shared=kernel.shared,
        warps_per_sm=warps,
        occupancy=warps / SMS[sm].warps,
        model=None if rates is None else main_model(code, mains, rates, warps, kernel.num_warps),
    )
