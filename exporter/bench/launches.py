"""The launches of an op's plan: what each takes, and the model of the one that multiplies.

Every op with products does them in its last launch; those before it prepare operands: they move data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from exporter.bench.measured import LaunchTime
from plugins.plan import KernelImage, decode, encode
from plugins.sass.model import LoopModel
from plugins.sass.report import reports
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


def last_models(plans: Sequence[bytes], sm: int, rates: Rates | None) -> list[LoopModel | None]:
    """The model of each plan's last kernel, for cubins of an SM; None where it has none of products by mma.sync."""
    if rates is None:
        return [None] * len(plans)
    decoded = [decode(plan) for plan in plans]
    last = [plan.kernels[plan.launches[-1].kernel] for plan in decoded]
    models = _models(tuple(dict.fromkeys(last)), sm, rates)
    return [models[kernel] for kernel in last]


@lru_cache(maxsize=32)
def _models(kernels: tuple[KernelImage, ...], sm: int, rates: Rates) -> dict[KernelImage, LoopModel | None]:
    """Once for a model's sizes and shares of kept blocks, which have the same kernels."""
    return {kernel: found.model for kernel, found in zip(kernels, reports(kernels, sm, rates), strict=True)}


def predicted_ms(operations: float, rate: float, sm_clocks: float) -> float:
    """ms of an op's last launch, were it all main loop; ``sm_clocks``: 10⁹ clocks a second of all SMs."""
    return operations / (rate * sm_clocks * 1e6)
