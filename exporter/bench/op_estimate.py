"""What an estimate says of one op of a block, and which measurement of the op it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from exporter.bench.block_graph import OpCall
from exporter.bench.measured import Measured
from exporter.bench.roofline import Limit
from plugins.cost import Cost
from plugins.op import AttrValue, Op

#: "measured": from times of the op on another GPU; "model": from its main loop's machine code alone; "limit": the
#: roofline itself, for want of both.
Basis = Literal["measured", "model", "limit"]


@dataclass(frozen=True)
class OpEstimate:
    """One op call of a block and the estimated ms of it.

    ``error``: how far an estimate of this kind was off where it could be checked, if it could. ``facts``: what else
    JSON says.
    """

    call: OpCall
    count: int
    cost: Cost
    limit: Limit
    ms: float
    basis: Basis
    error: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """For JSON. Times in ms, sizes in bytes."""
        return {
            "op": self.call.op.name,
            "dims": self.call.dims,
            "attributes": dict(self.call.attributes),
            "count": self.count,
            "traffic_bytes": self.cost.bytes,
            "operations": dict(self.cost.operations),
            "bound": self.limit.bound,
            "limit_ms": self.limit.ms,
            "ms": self.ms,
            "basis": self.basis,
            "error": self.error,
            **self.facts,
        }


def alike(entry: Measured, op: Op, attributes: Mapping[str, AttrValue]) -> bool:
    """Whether this measured the op with these attributes. One that is a number (the share of kept blocks) is a size."""
    return entry.op == op.name and _words(entry.attributes) == _words(attributes)


def apart(
    entry: Measured, dims: Mapping[str, int], attributes: Mapping[str, AttrValue], needs: Cost
) -> tuple[bool, bool, float]:
    """How far a measured size is from another, to be compared: the same dims first, then by the bytes' ratio."""
    return entry.dims != dims, entry.attributes != attributes, abs(math.log(entry.cost.bytes / needs.bytes))


def _words(attributes: Mapping[str, AttrValue]) -> dict[str, AttrValue]:
    return {name: value for name, value in attributes.items() if isinstance(value, str)}
