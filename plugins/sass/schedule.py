"""How long the warps of one SM partition take for an iteration of a loop: a simulation of their issue.

Each warp issues in order; the instruction's control bits say how long it stalls and which scoreboards it sets and waits
for (Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018, section 2.1: sm_70 to
sm_120 have the same fields). Of warps that can issue, the one that waited longest does. Units are busy as units.py
says; barriers hold a block's warps together. Latencies are constants, whatever comes from global memory is in L2, no
banks conflict, every predicate is true.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from plugins.sass.control_flow import Instruction
from plugins.sass.units import use
from plugins.sms import PARTITIONS, Rates

_ITERATIONS, _WARM_UP = 9, 3  # six that count: what alternates by two or three is seen whole
#: Cycles from issue to result where a scoreboard says so; published microbenchmarks of sm_80 to sm_90, rounded.
_LATENCY = {"LDSM": 33, "LDS": 30, "SHFL": 24, "MUFU": 20, "LDG": 300, "LDGSTS": 450, "LDC": 40, "S2R": 30}
_OTHER_LATENCY, _READ, _BARRIER = 20, 12, 20
#: Cycles of work that a unit's queue holds before a warp must wait to issue to it.
_QUEUE = {"shared": 64.0, "special": 64.0}
_NO_SCOREBOARD, _SCOREBOARDS = 7, 6
_GROUPS = re.compile(r"SB\d, (0x[0-9a-f]+)")  # of DEPBAR.LE: groups of copies that may still be under way


@dataclass(frozen=True)
class Step:
    """One instruction of the loop as the simulation sees it; times in cycles, scoreboards by number."""

    opcode: str
    unit: str | None
    cycles: float
    beside: float
    l2: float
    slack: float
    latency: int
    stall: int
    sets: int
    frees: int
    waits: tuple[int, ...]
    groups: int | None


def step(instruction: Instruction, rates: Rates) -> Step:
    """Decode the control bits: stall, the scoreboards set by its result and freed by its reads, those waited for."""
    bits = instruction.control >> 41
    mask = bits >> 11 & 63
    groups = _GROUPS.search(instruction.operands) if instruction.opcode == "DEPBAR" else None
    taken = use(instruction, rates)
    return Step(
        opcode=instruction.opcode,
        unit=None if taken.unit == "issue" else taken.unit,
        cycles=taken.cycles,
        beside=taken.beside,
        l2=taken.l2,
        slack=_QUEUE.get(taken.unit, 0.0),
        latency=_LATENCY.get(instruction.opcode, _OTHER_LATENCY),
        stall=max(1, bits & 15),
        sets=bits >> 5 & 7,
        frees=bits >> 8 & 7,
        waits=tuple(board for board in range(_SCOREBOARDS) if mask >> board & 1),
        groups=int(groups[1], 16) if groups else None,
    )


@dataclass
class _Warp:
    block: int
    ready: float = 0.0
    issued: int = -1
    at: int = 0
    waiting: bool = False
    boards: list[float] = field(default_factory=lambda: [0.0] * _SCOREBOARDS)
    copies: float = 0.0
    groups: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)


class _Partition:
    """A quarter of an SM: its units, and the warps that it holds."""

    def __init__(self, steps: Sequence[Step], warps: int, block: int):
        self.steps = steps
        self.warps = [_Warp(index // block) for index in range(warps)]
        self.free = {s.unit: 0.0 for s in steps if s.unit} | {"tensor": 0.0}
        self.clock = self.fetched = 0.0

    def run(self, iterations: int) -> None:
        """Until every warp has come round so often."""
        turn = 0
        while any(len(warp.ends) < iterations for warp in self.warps):
            ready = [
                (self._earliest(warp), warp.issued, index) for index, warp in enumerate(self.warps) if not warp.waiting
            ]
            when, _, index = min(ready)
            self._issue(self.warps[index], when)
            self.warps[index].issued = turn = turn + 1

    def _earliest(self, warp: _Warp) -> float:
        """When a warp's next instruction can issue."""
        now = self.steps[warp.at]
        when = max(warp.ready, self.clock)
        for board in now.waits:
            when = max(when, warp.boards[board])
        if now.groups is not None and len(warp.groups) > now.groups:
            when = max(when, *warp.groups[: len(warp.groups) - now.groups])
        return when if now.unit is None else max(when, self.free[now.unit] - now.slack)

    def _issue(self, warp: _Warp, when: float) -> None:
        now = self.steps[warp.at]
        start = when
        if now.unit is not None:
            start = max(when, self.free[now.unit])
            self.free[now.unit] = start + now.cycles
        if now.beside and self.free["tensor"] > when:
            self.free["tensor"] += now.beside
        done = start + now.cycles + now.latency
        if now.l2:
            self.fetched = max(self.fetched, start) + now.l2
            done = max(done, self.fetched + now.latency)
        if now.opcode == "LDGSTS":
            warp.copies = max(warp.copies, done)
        elif now.opcode == "LDGDEPBAR":
            warp.groups.append(warp.copies)
        elif now.sets != _NO_SCOREBOARD:
            warp.boards[now.sets] = max(warp.boards[now.sets], done)
        if now.frees != _NO_SCOREBOARD:
            warp.boards[now.frees] = max(warp.boards[now.frees], start + _READ)
        self.clock = when + 1
        warp.ready = when + now.stall
        self._advance(warp, when)

    def _advance(self, warp: _Warp, when: float) -> None:
        barrier = self.steps[warp.at].opcode == "BAR"
        warp.at += 1
        if warp.at == len(self.steps):
            warp.at = 0
            warp.ends.append(when)
        if barrier:
            warp.waiting = True
            block = [other for other in self.warps if other.block == warp.block]
            if all(other.waiting for other in block):
                for other in block:
                    other.waiting, other.ready = False, when + _BARRIER


def iteration_cycles(
    code: Sequence[Instruction],
    rates: Rates,
    warps: int,
    block: int,
    iterations: int = _ITERATIONS,
    warm_up: int = _WARM_UP,
) -> float:
    """Cycles in which an SM's resident warps, ``block`` of them a block, do one iteration each of a loop's code."""
    steps = [step(instruction, rates) for instruction in code]
    partition = _Partition(steps, -(-warps // PARTITIONS), -(-block // PARTITIONS))
    partition.run(iterations)
    rounds = [(len(warp.ends) - warm_up) / (warp.ends[-1] - warp.ends[warm_up - 1]) for warp in partition.warps]
    return len(rounds) / sum(rounds)
