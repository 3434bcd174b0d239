"""Which parts stay in device memory between calls, which come ahead of their turn, and what waits in the host's.

Parts run one after the other. One stays if its weights fit beside every other part's run, and no part runs in another
way so that one can stay. Those stay first that cost most to bring back. What does not stay comes while the part before
it runs, where there is room for both, and waits in page-locked host memory in between, up to a limit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from runtime.byte_sizes import gigabytes

HOST_LIMIT = 16 * 10**9  # bytes of page-locked memory where nobody says another


@dataclass(frozen=True)
class Need:
    """One part: bytes of device memory, its weights among them.

    ``weights``: what stays, if it stays; ``peak``: of a run that finds them there; ``passing``: of a run that brings
    its own and gives them back; ``ahead``: of these, what may come while another part runs; ``waits``: what is copied
    for each call in which it does not stay, ``streams``: in each in which it does; ``rank``: the lowest stays first.
    """

    name: str
    how: str  # it runs
    weights: int
    peak: int
    passing: int
    ahead: int
    waits: int
    streams: int
    rank: int


@dataclass(frozen=True)
class Residency:
    """The parts of a call in the order of their runs, and where each one's weights are in between."""

    needs: tuple[Need, ...]
    stay: frozenset[str]
    ahead: frozenset[str]
    waiting: Mapping[str, int]
    host_limit: int

    def stays(self, name: str) -> bool:
        return name in self.stay

    def after(self, name: str) -> str | None:
        """The part that comes while this one runs, or None."""
        names = [need.name for need in self.needs]
        following = names[names.index(name) + 1 : names.index(name) + 2] if name in names else []
        return next((after for after in following if after in self.ahead), None)

    def peak(self, name: str) -> int:
        """Bytes of device memory at most while a part runs, those of all others that are there among them."""
        index = next(i for i, need in enumerate(self.needs) if need.name == name)
        after = self.needs[index + 1 : index + 2]
        coming = sum(need.ahead for need in after if need.name in self.ahead)
        return _beside(self.needs, self.stay, self.needs[index]) + coming

    @property
    def most(self) -> int:
        """The largest of all peaks."""
        return max(self.peak(need.name) for need in self.needs)

    def lines(self) -> list[str]:
        """The plan as one reads it."""
        width = max(len(need.name) for need in self.needs)
        figures = [gigabytes(self.peak(need.name)) for need in self.needs]
        column = max(len(figure) for figure in figures)
        rows = zip(self.needs, figures, strict=True)
        listed = [f"  {need.name:<{width}}  {figure:>{column}}  {need.how}" for need, figure in rows]
        head = f"Device memory at most, part by part (one at a time): {gigabytes(self.most)}"
        return [head, *listed, *self.between()]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        parts = [{"part": need.name, "peak_bytes": self.peak(need.name), "how": need.how} for need in self.needs]
        between = {"stay": sorted(self.stay), "ahead": sorted(self.ahead), "waiting_bytes": dict(self.waiting)}
        return {"parts": parts, "peak_bytes": self.most, **between}

    def between(self) -> list[str]:
        """Where weights are between runs, as one reads it."""
        kept = sum(need.weights for need in self.needs if need.name in self.stay)
        said = []
        if self.stay:
            names = ", ".join(need.name for need in self.needs if need.name in self.stay)
            said.append(f"Between videos stay: {names} ({gigabytes(kept)})")
        for name, count in self.waiting.items():
            limit = gigabytes(self.host_limit)
            said.append(f"In page-locked host memory waits: {name} ({gigabytes(count)}; at most {limit} in all)")
        if self.ahead:
            names = ", ".join(need.name for need in self.needs if need.name in self.ahead)
            said.append(f"Behind the part before comes: {names}")
        return said


def plan_residency(
    needs: Sequence[Need], budget: int | None, *, again: Collection[str], host_limit: int = HOST_LIMIT
) -> Residency:
    """The largest part of it that fits: ``needs`` in the order of their runs, ``budget`` in bytes, None: no limit.

    ``again``: the parts that run again later.
    """

    def fits(stay: frozenset[str]) -> bool:
        return budget is None or all(_beside(needs, stay, need) <= budget for need in needs)

    stay = frozenset[str]()
    for need in sorted(needs, key=lambda need: need.rank):
        if need.name in again and fits(stay | {need.name}):
            stay |= {need.name}
    ahead = {
        after.name
        for before, after in pairwise(needs)
        if after.name not in stay and (budget is None or _beside(needs, stay, before) + after.ahead <= budget)
    }
    waiting, left = dict[str, int](), host_limit
    for need in sorted(needs, key=lambda need: need.rank):
        wanted = need.streams if need.name in stay else need.waits
        if need.name in again and (given := min(wanted, left)):
            waiting[need.name] = given
            left -= given
    return Residency(tuple(needs), stay, frozenset(ahead), waiting, host_limit)


def _beside(needs: Sequence[Need], stay: Collection[str], running: Need) -> int:
    """Bytes while a part runs and these stay."""
    others = sum(need.weights for need in needs if need.name in stay and need is not running)
    return others + (running.peak if running.name in stay else running.passing)
