"""Estimates of RTX parts: what their kernels took on a Hopper GPU (proxy.py), carried over by models of both.

The last launch of an op with products takes as much longer as the part multiplies more slowly: by the model of its
kernel there and here (plugins.sass.timing), each at the clocks of its SMs. The model knows the part's tensor cores and
FP16 sums, what its other units do in a clock, and the code that ptxas made for it. Every other launch moves data, and
takes as much longer as the memory is slower. sm_90's own kernels have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from exporter.bench.block_graph import OpCall
from exporter.bench.launches import Multiplying, multiplying, predicted_ms
from exporter.bench.measured import Measured, Proxy, proxied_ops
from exporter.bench.op_estimate import OpEstimate, alike, apart
from exporter.bench.proxy import proxy_limits
from exporter.bench.roofline import limit
from exporter.gpus import GPUS, GpuSpec
from plugins.cost import Cost

Known = tuple[Proxy, Measured]


def nearest(call: OpCall, sm: int, known: Sequence[Known]) -> Known | None:
    """The measurement of a call's op whose size is nearest; of equal ones that of the SM's own kernels."""
    attributes = dict(call.attributes)

    def order(one: Known) -> tuple[bool, bool, bool, float]:
        proxy, entry = one
        dims, same, size = apart(entry, call.dims, attributes, call.cost)
        return dims, same, proxy.kernels_of_sm != sm, size

    return min((one for one in known if alike(one[1], call.op, attributes)), key=order, default=None)


def carried_over(known: Known, needs: Cost, gpu: GpuSpec, rate: float | None) -> float:
    """ms on the part of an op that was measured by proxy; ``rate``: of its last launch there, if it multiplies."""
    proxy, entry = known
    limits = proxy_limits(proxy.device)
    moving = needs.bytes / entry.cost.bytes * GPUS[limits.part].bandwidth / gpu.bandwidth
    *before, last = (launch.ms for launch in entry.launches)
    if entry.rate is None or rate is None:
        return moving * entry.ms
    products = needs.total / entry.cost.total * (entry.rate * limits.sm_clocks) / (rate * gpu.sm_clocks)
    # Where the model takes the kernel for slower on the proxy than it is, the ratio is too hopeful: the slower counts.
    return moving * sum(before) + max(products * last, predicted_ms(needs.total, rate, gpu.sm_clocks))


def predicted_on_proxy(proxy: Proxy, entry: Measured) -> float | None:
    """ms of the last launch on the proxy by the model of its kernel there, or None where it has none."""
    if entry.rate is None:
        return None
    return predicted_ms(entry.cost.total, entry.rate, proxy_limits(proxy.device).sm_clocks)


def model_error(known: Known) -> float | None:
    """(predicted − measured) / measured of the last launch on the proxy, or None where it has no model."""
    predicted = predicted_on_proxy(*known)
    return None if predicted is None else predicted / known[1].launches[-1].ms - 1


def proxy_estimates(calls: Mapping[OpCall, int], gpu: GpuSpec) -> list[OpEstimate]:
    """Of each call on an RTX part; ``error``: of the model on the proxy. Kernels with products are compiled for it."""
    known, sm = proxied_ops(), gpu.cubin_sm
    models = multiplying({call: call.plan(sm) for call in calls if call.cost.total}, sm, gpu.rates)
    return [_estimate(call, count, gpu, models.get(call), nearest(call, sm, known)) for call, count in calls.items()]


def _estimate(call: OpCall, count: int, gpu: GpuSpec, model: Multiplying | None, found: Known | None) -> OpEstimate:
    needs = call.cost
    best = limit(needs, gpu)
    facts: dict[str, Any] = {"tensor_share": None if model is None else model.share, "proxy": None}
    if found is not None:
        facts["proxy"] = {**msgspec.to_builtins(found[0]), **msgspec.to_builtins(found[1])}
        ms = max(best.ms, carried_over(found, needs, gpu, None if model is None else model.rate))
        return OpEstimate(call, count, needs, best, ms, "measured", model_error(found), facts)
    if model is not None:
        ms = max(best.ms, predicted_ms(needs.total, model.rate, gpu.sm_clocks))
        return OpEstimate(call, count, needs, best, ms, "model", None, facts)
    return OpEstimate(call, count, needs, best, best.ms, "limit", None, facts)
