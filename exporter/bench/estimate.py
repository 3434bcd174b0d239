"""``turbotrt estimate``: each op's roofline on a GPU, divided by the efficiency the op reached on the H200.

It is an estimate: another GPU's caches, clocks and schedulers differ, and only the peaks are scaled. Its error where a
check is possible is shown: each op measured at several sizes on the H200 is predicted from its other sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from exporter.bench.block_graph import OpCall, block_calls
from exporter.bench.measured import Measured, measured_ops, measured_step
from exporter.bench.roofline import Limit, limit
from exporter.gpus import GPUS, GpuSpec
from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from plugins.cost import Cost, cost
from plugins.op import AttrValue, Op
from plugins.registry import OPS

REFERENCE = "h200"


@dataclass(frozen=True)
class OpEstimate:
    """One op call of a block. ``efficiency``: share of its limit on the H200, None if never measured (1 is assumed)."""

    call: OpCall
    count: int
    cost: Cost
    limit: Limit
    efficiency: float | None

    @property
    def ms(self) -> float:
        """Estimated time of one call."""
        return self.limit.ms / (self.efficiency or 1.0)


def _measured_cost(entry: Measured) -> Cost:
    return cost(OPS[entry.op], entry.dims, entry.attributes)


def efficiency(
    op: Op, dims: dict[str, int], attributes: dict[str, AttrValue], measured: Sequence[Measured]
) -> float | None:
    """The share of the H200's limit in the measurement of this op whose size is nearest (in bytes, by ratio).

    An attribute that is a number (the share of kept blocks) is a size too: other values of it count as other sizes.
    """
    same = [m for m in measured if m.op == op.name and _words(m.attributes) == _words(attributes)]
    if not same:
        return None
    size = cost(op, dims, attributes).bytes

    def apart(m: Measured) -> tuple[bool, bool, float]:
        return m.dims != dims, m.attributes != attributes, abs(math.log(_measured_cost(m).bytes / size))

    nearest = min(same, key=apart)
    return limit(_measured_cost(nearest), GPUS[REFERENCE]).ms / nearest.ms


def _words(attributes: Mapping[str, AttrValue]) -> dict[str, AttrValue]:
    return {name: value for name, value in attributes.items() if isinstance(value, str)}


def estimate_block(
    model: ModelSpec, gpu: GpuSpec, options: BlockOptions, length: int | None = None
) -> list[OpEstimate]:
    """Every distinct op call of a model's block at L = ``length``, its default size's if None."""
    measured = measured_ops(REFERENCE, portable=gpu.sm != GPUS[REFERENCE].sm)
    found = []
    for call, count in block_calls(model, options, length).items():
        dims, attributes = call.dims, dict(call.attributes)
        needs = cost(call.op, dims, attributes)
        reached = efficiency(call.op, dims, attributes, measured)
        found.append(OpEstimate(call, count, needs, limit(needs, gpu), reached))
    return found


def transfer_errors(op: str) -> list[float]:
    """(predicted − measured) / measured on the H200 for each measurement of an op, predicted from the others."""
    measured = [m for m in measured_ops(REFERENCE, portable=False) if m.op == op]
    errors = []
    for entry in measured:
        others = [m for m in measured if m != entry]
        reached = efficiency(OPS[op], entry.dims, entry.attributes, others)
        if reached is not None:
            errors.append(limit(_measured_cost(entry), GPUS[REFERENCE]).ms / reached / entry.ms - 1)
    return errors


def _row(estimate: OpEstimate) -> dict[str, Any]:
    errors = transfer_errors(estimate.call.op.name)
    return {
        "op": estimate.call.op.name,
        "dims": estimate.call.dims,
        "attributes": dict(estimate.call.attributes),
        "count": estimate.count,
        "traffic_bytes": estimate.cost.bytes,
        "operations": dict(estimate.cost.operations),
        "bound": estimate.limit.bound,
        "limit_ms": estimate.limit.ms,
        "efficiency": estimate.efficiency,
        "ms": estimate.ms,
        "h200_worst_error": max(errors, key=abs) if errors else None,
    }


def step_ms(model: ModelSpec, gpu: GpuSpec, options: BlockOptions, length: int | None = None) -> float:
    """Estimated ms of a step's blocks."""
    return model.layers * sum(e.count * e.ms for e in estimate_block(model, gpu, options, length))


def estimate(model: ModelSpec, gpu: GpuSpec, options: BlockOptions) -> dict[str, Any]:
    """What ``estimate --json`` prints. Times in ms, sizes in bytes; a step is all blocks, without embed and head."""
    estimates = estimate_block(model, gpu, options)
    block = sum(e.count * e.ms for e in estimates)
    unmeasured = sum(e.count * e.ms for e in estimates if e.efficiency is None)
    # Only the default options were ever measured as a whole.
    known = measured_step(REFERENCE, model.name) if options == BlockOptions() else None
    predicted = step_ms(model, GPUS[REFERENCE], options)
    return {
        "estimate": True,
        "model": model.name,
        "gpu": gpu.name,
        "tokens": model.tokens(),
        "kernels": [_row(e) for e in estimates],
        "block_ms": block,
        "step_ms": model.layers * block,
        "step_limit_ms": model.layers * sum(e.count * e.limit.ms for e in estimates),
        "unmeasured_share": unmeasured / block,
        "h200_step_ms": predicted,
        "h200_measured_step_ms": known,
        "h200_error": None if known is None else predicted / known - 1,
    }


def _error_line(found: dict[str, Any]) -> str:
    if found["h200_measured_step_ms"] is None:
        return "no step of this model with these options was measured, so the error is unknown"
    return (
        f"the same estimate for the H200 gives {found['h200_step_ms']:.0f} ms a step, measured "
        f"{found['h200_measured_step_ms']:.0f} ms: error {found['h200_error']:+.0%}"
    )


def show_estimate(found: dict[str, Any], console: Console) -> None:
    """The table and the sums."""
    table = Table(title=f"ESTIMATE, not a measurement: {found['model']} on {found['gpu']}, L = {found['tokens']:,}")
    for heading in ("op", "dims"):
        table.add_column(heading, no_wrap=heading == "op")
    for heading in ("×", "GB", "TOP", "bound", "limit ms", "of limit", "ms", "H200 error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found["kernels"]:
        reached, error = row["efficiency"], row["h200_worst_error"]
        table.add_row(
            row["op"],
            " ".join(f"{name}={value}" for name, value in (row["dims"] | row["attributes"]).items()),
            str(row["count"]),
            f"{row['traffic_bytes'] / 1e9:.2f}",
            f"{sum(row['operations'].values()) / 1e12:.2f}",
            row["bound"],
            f"{row['limit_ms']:.3f}",
            "(100%)" if reached is None else f"{reached:.0%}",
            f"{row['ms']:.3f}",
            "–" if error is None else f"{error:+.0%}",
        )
    console.print(table)
    console.print(
        f"one step's blocks: about {found['step_ms']:.0f} ms (at every limit {found['step_limit_ms']:.0f} ms).\n"
        f"of limit: what the op reached on the H200 at the nearest measured size; (100%): never measured, the limit "
        f"itself is taken ({found['unmeasured_share']:.0%} of the time above).\n"
        f"H200 error: the op's worst where one measured size is predicted from the others; {_error_line(found)}."
    )
