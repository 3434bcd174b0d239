"""Estimates from the H200: each op's roofline, divided by the efficiency the op reached there.

Its error where a check is possible: each op measured at several sizes is predicted from its other sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exporter.bench.block_graph import OpCall
from exporter.bench.measured import Measured, measured_ops
from exporter.bench.op_estimate import OpEstimate, alike, apart
from exporter.bench.roofline import limit
from exporter.gpus import GPUS, GpuSpec
from plugins.cost import cost
from plugins.op import AttrValue, Op
from plugins.registry import OPS

REFERENCE = "h200"


def efficiency(
    op: Op, dims: dict[str, int], attributes: dict[str, AttrValue], measured: Sequence[Measured]
) -> float | None:
    """The share of the H200's limit in the measurement of this op whose size is nearest; None if there is none."""
    same = [entry for entry in measured if alike(entry, op, attributes)]
    if not same:
        return None
    needs = cost(op, dims, attributes)
    nearest = min(same, key=lambda entry: apart(entry, dims, attributes, needs))
    return limit(nearest.cost, GPUS[REFERENCE]).ms / nearest.ms


def h200_estimates(calls: Mapping[OpCall, int], gpu: GpuSpec) -> list[OpEstimate]:
    """Of each call on a GPU; ``error``: the worst of the op where one size predicts another."""
    measured = measured_ops(REFERENCE, portable=gpu.sm != GPUS[REFERENCE].sm)
    found = []
    for call, count in calls.items():
        needs = call.cost
        best, reached = limit(needs, gpu), efficiency(call.op, call.dims, dict(call.attributes), measured)
        errors = transfer_errors(call.op.name)
        found.append(
            OpEstimate(
                call,
                count,
                needs,
                best,
                best.ms / (reached or 1.0),
                "limit" if reached is None else "measured",
                max(errors, key=abs) if errors else None,
                {"efficiency": reached},
            )
        )
    return found


def transfer_errors(op: str) -> list[float]:
    """(predicted − measured) / measured on the H200 for each measurement of an op, predicted from the others."""
    measured = [m for m in measured_ops(REFERENCE, portable=False) if m.op == op]
    errors = []
    for entry in measured:
        others = [m for m in measured if m != entry]
        reached = efficiency(OPS[op], entry.dims, entry.attributes, others)
        if reached is not None:
            errors.append(limit(entry.cost, GPUS[REFERENCE]).ms / reached / entry.ms - 1)
    return errors
