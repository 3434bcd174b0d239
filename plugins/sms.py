"""The table of SMs that kernels are compiled for: what one streaming multiprocessor holds, by its number.

Numbers are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; 90 is compute
capability 9.0. What a part has (how fast, how much memory) is in exporter/gpus.py, a kernel's configs lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

RESERVED_SHARED = 1  # KiB of shared memory that the driver takes of each block


@dataclass(frozen=True)
class SmSpec:
    """What one SM holds at once: warps, blocks, KiB of shared memory, 32-bit registers; whether its MMA has FP8."""

    number: int
    warps: int
    blocks: int
    shared: int
    fp8: bool
    registers: int = 65536


_TABLE = (
    SmSpec(80, warps=64, blocks=32, shared=164, fp8=False),
    SmSpec(86, warps=48, blocks=16, shared=100, fp8=False),
    SmSpec(89, warps=48, blocks=24, shared=100, fp8=True),
    SmSpec(90, warps=64, blocks=32, shared=228, fp8=True),
    SmSpec(100, warps=64, blocks=32, shared=228, fp8=True),
    SmSpec(120, warps=48, blocks=24, shared=100, fp8=True),
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
