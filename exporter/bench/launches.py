"""The launches of an op's plan: what each takes, and the model of the one that multiplies.

Every op with products does them in its last launch; those before it prepare operands: they move data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import msgspec

from exporter.bench.block_graph import OpCall
from exporter.bench.measured import LaunchTime
from plugins.expr import evaluate, from_plain
from plugins.plan import KernelImage, Plan, decode, encode
from plugins.sass.timing import KernelTiming, timings
from plugins.sms import Rates


def launch_times(plan: bytes, time: Callable[[bytes], float]) -> list[LaunchTime]:
    """Each launch by what the plan takes longer with it than without it; ``time``: plan bytes → ms."""
    whole = decode(plan)
    found, before = [], 0.0
    for count, launch in enumerate(whole.launches, 1):
        until = time(encode(msgspec.structs.replace(whole, launches=whole.launches[:count])))
        found.append(LaunchTime(whole.kernels[launch.kernel].name, max(0.0, until - before)))
        before = max(before, until)
    return found


@dataclass(frozen=True)
class Multiplying:
    """An op's last launch by the model: the tensor cores' share of its main loop, its operations a clock of an SM."""

    share: float
    rate: float


def multiplying(calls: Mapping[OpCall, bytes], sm: int, rates: Rates | None) -> dict[OpCall, Multiplying]:
    """Of those calls with products whose plans, for cubins of an SM, do them by mma.sync."""
    if rates is None:
        return {}
    plans = {call: decode(plan) for call, plan in calls.items() if call.cost.total}
    last = {call: plan.kernels[plan.launches[-1].kernel] for call, plan in plans.items()}
    found = _timings(tuple(dict.fromkeys(last.values())), sm, rates)
    return {
        call: Multiplying(timing.loop.share, timing.rate(call.cost.total, _programs(plans[call], call)))
        for call, kernel in last.items()
        if (timing := found[kernel]) is not None
    }


def _programs(plan: Plan, call: OpCall) -> int:
    """How many programs the last launch has."""
    symbols = plan.bind(call.shapes)
    return prod(evaluate(from_plain(dim), symbols) for dim in plan.launches[-1].grid)


@lru_cache(maxsize=32)
def _timings(kernels: tuple[KernelImage, ...], sm: int, rates: Rates) -> dict[KernelImage, KernelTiming | None]:
    """Once for a model's sizes and shares of kept blocks, which have the same kernels."""
    return dict(zip(kernels, timings(kernels, sm, rates), strict=True))


def predicted_ms(operations: float, rate: float, sm_clocks: float) -> float:
    """ms of so many operations at ``rate`` a clock of an SM; ``sm_clocks``: 10⁹ clocks a second of all SMs."""
    return operations / (rate * sm_clocks * 1e6)
