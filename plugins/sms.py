"""The table of SMs that kernels are compiled for: what one streaming multiprocessor holds and does, by its number.

Numbers are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" and "Throughput
of Native Arithmetic Instructions"; 90 is compute capability 9.0. Tensor cores: the vendor's dense peaks over SMs and
boost clock, as the architecture whitepapers print them. What a part has (how fast, how much memory) is in
exporter/gpus.py, a kernel's configs lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

RESERVED_SHARED = 1  # KiB of shared memory that the driver takes of each block


PARTITIONS = 4  # of an SM: each has a scheduler that issues an instruction a clock, and a tensor core


@dataclass(frozen=True)
class Rates:
    """What one SM does in a clock, where mma.sync runs at the tensor cores' full rate.

    Tensor operations (a multiplication and an addition are two) by operands and by what they are summed in; threads'
    operations by kind; bytes of shared memory and from L2. ``beside``: cycles that an instruction of an opcode takes
    from its partition's tensor core while that multiplies; published for no SM. Nor is ``l2_bytes``: 40 fits GEMM
    kernels timed on an H100.
    """

    int8: int
    fp8: int | None
    fp8_in_fp16: int | None
    fp16: int
    fp16_in_fp16: int
    fp32: int
    integer: int
    convert: int = 64
    special: int = 16
    shared_bytes: int = 128
    l2_bytes: int = 40
    beside: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def professional(self) -> Rates:
        """The same SM on a part that is no GeForce, which sums in FP32 as fast as in FP16."""
        return replace(self, fp8=self.fp8_in_fp16, fp16=self.fp16_in_fp16)


_SM_80 = Rates(4096, None, None, 2048, 2048, fp32=64, integer=64)
_SM_86 = Rates(2048, None, None, 512, 1024, fp32=128, integer=64)
_SM_89 = replace(_SM_86, fp8=1024, fp8_in_fp16=2048)


@dataclass(frozen=True)
class SmSpec:
    """What one SM holds at once: warps, blocks, KiB of shared memory, 32-bit registers; whether its MMA has FP8.

    ``rates``: what it does in a clock, on GeForce parts where there are any. None where kernels do not multiply by
    mma.sync alone.
    """

    number: int
    warps: int
    blocks: int
    shared: int
    fp8: bool
    registers: int = 65536
    rates: Rates | None = None


_TABLE = (
    SmSpec(80, warps=64, blocks=32, shared=164, fp8=False, rates=_SM_80),
    SmSpec(86, warps=48, blocks=16, shared=100, fp8=False, rates=_SM_86),
    SmSpec(89, warps=48, blocks=24, shared=100, fp8=True, rates=_SM_89),
    SmSpec(90, warps=64, blocks=32, shared=228, fp8=True),
    SmSpec(100, warps=64, blocks=32, shared=228, fp8=True),
    # RTX Blackwell's cores do either kind of arithmetic.
    SmSpec(120, warps=48, blocks=24, shared=100, fp8=True, rates=replace(_SM_89, integer=128)),
)

SMS: Mapping[int, SmSpec] = MappingProxyType({sm.number: sm for sm in _TABLE})

#: KiB of shared memory that one block may take: the SM's, but for what the driver takes.
SHARED_LIMIT: Mapping[int, int] = MappingProxyType({sm.number: sm.shared - RESERVED_SHARED for sm in _TABLE})

_CUBINS_OF = {121: 120}  # a later minor version of the same major one

GEFORCE_SMS = 192  # of the largest die of sm_120; a persistent grid's programs beyond a part's own SMs end at once
HOPPER_SMS = 132  # of H100 SXM and H200: the grid of persistent kernels, which run right in any number of programs


def sm_number(major: int, minor: int) -> int:
    """The number of a compute capability: 90 for 9.0."""
    return 10 * major + minor


def capability(sm: int) -> str:
    """The compute capability of an SM: "9.0" for 90."""
    return f"{sm // 10}.{sm % 10}"


def cubin_sm(sm: int) -> int:
    """The SM whose cubins an SM runs, if not its own."""
    return _CUBINS_OF.get(sm, sm)
