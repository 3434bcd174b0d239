"""What stays in device memory and what streams: arithmetic on exact sizes, before anything is loaded.

A unit is what a pass runs in one go: 0 is the embed stage, 1 … N the layers, N + 1 the head. A slot holds its weights.
Three ways, the largest that fits is taken:
- every expert's units in slots of their own;
- one slot for each unit: at the switch the second expert's weights follow behind compute, unit by unit;
- some layers resident, spread evenly over the pass, and the others taking turns in two slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plugins.errors import UserError
from runtime.byte_sizes import gigabytes, gigabytes_up
from runtime.weights.upload import pinned_bytes

RING = 2  # slots that streamed layers take turns in: one is computed on while the other is filled


@dataclass(frozen=True)
class StageBytes:
    """Exact bytes: the slot of each stage's weights, a run's inputs and outputs, activations while each stage runs."""

    embed: int
    block: int
    head: int
    io: int
    activations: Mapping[str, int]
    overhead: int

    @property
    def running(self) -> int:
        """What a run takes besides weights; stages run one after the other and share their activation memory."""
        return self.io + max(self.activations.values()) + self.overhead


@dataclass(frozen=True)
class MemoryPlan:
    """Where every unit's weights lie and the peak in bytes. ``experts``: those that the run reaches, in order."""

    sizes: StageBytes
    layers: int
    experts: tuple[str, ...]
    resident: frozenset[int]
    all_experts: bool
    budget: int | None
    tokens: int

    @property
    def streamed(self) -> int:
        """How many layers do not stay."""
        return self.layers - len(self.resident)

    @property
    def weights(self) -> int:
        """Bytes of all weight slots."""
        ring = min(RING, self.streamed)
        own = self.sizes.embed + self.sizes.head + self.sizes.block * len(self.resident)
        return own * (len(self.experts) if self.all_experts else 1) + ring * self.sizes.block

    @property
    def peak(self) -> int:
        """Bytes of device memory at most, besides the CUDA context itself."""
        return self.weights + self.sizes.running

    @property
    def pinned(self) -> int:
        """Bytes of page-locked host memory at most."""
        return pinned_bytes(max(self.sizes.embed, self.sizes.block, self.sizes.head))

    @property
    def smallest(self) -> int:
        """The peak in bytes with as little as can be resident: the smallest budget that works."""
        few = frozenset[int]() if self.layers > RING else self.resident
        return replace(self, resident=few, all_experts=False).peak

    def plain(self) -> dict[str, Any]:
        """For JSON; activations by stage."""
        names = ("tokens", "layers", "streamed", "all_experts")
        counts = {name: getattr(self, name) for name in ("budget", "peak", "smallest", "weights", "pinned")}
        counts |= {"io": self.sizes.io, "overhead": self.sizes.overhead, "activation": dict(self.sizes.activations)}
        return {
            **{name: getattr(self, name) for name in names},
            **{f"{name}_bytes": count for name, count in counts.items()},
            "experts": list(self.experts),
            "resident_layers": sorted(unit - 1 for unit in self.resident),
        }

    def lines(self) -> list[str]:
        """The plan as one reads it."""
        s = self.sizes
        head = f"at most {gigabytes(self.peak)}" + (f" of {gigabytes(self.budget)}" if self.budget else "")
        worst = max(s.activations, key=lambda stage: s.activations[stage])
        return [
            f"{head} of device memory at L = {self.tokens:,}:",
            f"  weights {gigabytes(self.weights)}: {self._layers()}",
            f"  activations and workspace {gigabytes(s.activations[worst])} ({worst}), "
            f"inputs and outputs {gigabytes(s.io)}, overhead {gigabytes(s.overhead)}",
            f"  page-locked host memory {gigabytes(self.pinned)}",
            *self._experts(),
        ]

    @property
    def how(self) -> str:
        """Where the weights lie, in a few words."""
        if self.streamed:
            return f"{self.streamed} of {self.layers} layers stream"
        both = "; both experts" if self.all_experts else "; one expert at a time" if len(self.experts) > 1 else ""
        return f"all {self.layers} layers resident{both}"

    def _layers(self) -> str:
        stays = f"embed, head and {len(self.resident)} of {self.layers} layers stay"
        return f"{stays}; {self.streamed} stream through {RING} slots" if self.streamed else stays

    def _experts(self) -> list[str]:
        if len(self.experts) < 2:
            return []
        how = (
            "are both resident" if self.all_experts else "take turns in the same slots; the switch runs behind compute"
        )
        return [f"  experts {' and '.join(self.experts)} {how}"]


def spread(resident: int, layers: int) -> frozenset[int]:
    """Units (1 … layers) of the layers that stay: streamed ones lie evenly between, so that each copy has time."""
    streamed = layers - resident
    return frozenset(i + 1 for i in range(layers) if (i + 1) * streamed // layers == i * streamed // layers)


def plan_memory(
    sizes: StageBytes, layers: int, experts: tuple[str, ...], tokens: int, budget: int | None = None
) -> MemoryPlan:
    """The largest plan within the budget in bytes; None means no limit.

    Raises UserError with the smallest budget that works where this one does not.
    """

    def made(resident: int, all_experts: bool = False) -> MemoryPlan:
        return MemoryPlan(sizes, layers, experts, spread(resident, layers), all_experts, budget, tokens)

    choices = [made(layers, True)] if len(experts) > 1 else []
    # Two streamed layers or fewer take as much in the ring as in slots of their own.
    choices += [made(resident) for resident in (layers, *range(layers - RING - 1, -1, -1))]
    for choice in choices:
        if budget is None or choice.peak <= budget:
            return choice
    raise UserError(
        f"{gigabytes(budget or 0)} of device memory is too little for L = {tokens:,}.",
        expected=f"at least {gigabytes_up(choices[-1].peak)}",
        got=gigabytes(budget or 0),
        remedy="give that much, or fewer pixels or frames",
    )
