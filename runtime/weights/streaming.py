"""Weights on their way to the device: which copy goes when, and the thread that makes them.

A run is a list of uses, each of one unit of one expert. The copy for a use waits until the slot's previous use is over
on the compute queue, and the use waits for its copy; both by events, so the host never stands between. Resident units
need no copy but the first; the switch to another expert is the same rule in the same slots.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from plugins.interrupts import uninterrupted
from runtime.backends.protocol import Bytes, Device, Event, Memory
from runtime.weights.memory_plan import RING
from runtime.weights.upload import Piece, Staging, Stored, Ticket

Unit = tuple[str, int]  # expert or component, and its unit: 0 embed, 1 … N layers, N + 1 head
_NAME = "turbotrt-weights"  # of the thread
Slot = tuple[Literal["own", "ring"], str, int]  # expert is "" where all share the slot


class Places(Protocol):
    """Which units stay: all but the layers that are not ``resident``, and those of one expert or of all."""

    @property
    def layers(self) -> int: ...

    @property
    def resident(self) -> frozenset[int]: ...

    @property
    def all_experts(self) -> bool: ...


class Kept(Protocol):
    """Page-locked memory that keeps units (``runtime.weights.host``)."""

    def place(self, unit: Unit, nbytes: int) -> Bytes | None: ...

    def holds(self, unit: Unit) -> bool: ...

    def filled(self, unit: Unit) -> None: ...


@dataclass(frozen=True)
class Copy:
    """Bring a unit into a slot for the use at that place in the list, after an earlier use of the slot is over."""

    unit: Unit
    slot: Slot
    for_use: int
    after_use: int | None


@dataclass(frozen=True)
class Schedule:
    """The uses of a run in order, the slot of each, and the copies in the order they are needed."""

    uses: tuple[Unit, ...]
    slots: tuple[Slot, ...]
    copies: tuple[Copy, ...]

    def only(self, copies: tuple[Copy, ...]) -> Schedule:
        """The same uses with these copies."""
        return replace(self, copies=copies)


def slots_of(plan: Places, uses: Sequence[Unit]) -> dict[Slot, Unit]:
    """Every slot that these uses take under a plan, and the first unit that it holds."""
    made = schedule(uses, plan, {})
    return {slot: unit for slot, unit in reversed(list(zip(made.slots, made.uses, strict=True)))}


def schedule(uses: Sequence[Unit], plan: Places, held: Mapping[Slot, Unit]) -> Schedule:
    """The copies that these uses need, where ``held`` says what each slot holds at the start."""
    content, last_use = dict(held), dict[Slot, int]()
    slots, copies = list[Slot](), list[Copy]()
    turns = 0
    for index, (expert, unit) in enumerate(uses):
        if 1 <= unit <= plan.layers and unit not in plan.resident:
            slot: Slot = ("ring", "", turns % RING)
            turns += 1
        else:
            slot = ("own", expert if plan.all_experts else "", unit)
        if content.get(slot) != (expert, unit):
            copies.append(Copy((expert, unit), slot, index, last_use.get(slot)))
            content[slot] = (expert, unit)
        slots.append(slot)
        last_use[slot] = index
    return Schedule(tuple(uses), tuple(slots), tuple(copies))


class WeightStream:
    """Slots in device memory and what they hold. One run at a time: start, acquire and release each use, finish."""

    def __init__(
        self,
        device: Device,
        staging: Staging,
        slots: Mapping[Slot, Memory],
        find: Callable[[Unit], Stored],
        kept: Kept | None = None,
    ) -> None:
        """``slots`` may be filled later. ``kept``: units that come again stay there, as far as there is room."""
        self._device, self._staging, self._memory = device, staging, slots
        self._find, self._kept = find, kept
        self.held: dict[Slot, Unit] = {}
        self.copied_bytes = self._began_at = 0
        self._run = Schedule((), (), ())
        self._held_before: dict[Slot, Unit] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, run: Schedule) -> None:
        """Begin the copies of a run in a thread of their own."""
        self._run, self._held_before = run, dict(self.held)
        self._began_at = self.copied_bytes
        self._copied: dict[int, Event] = {}
        self._used: dict[int, Event] = {}
        self._waits: list[tuple[Event, Event]] = []
        self._waiting_for = {copy.for_use for copy in run.copies}
        self._error: BaseException | None = None
        self._stopping = False
        if not run.copies:
            return
        with uninterrupted():  # a thread whose start was interrupted is there or not, and nothing tells
            thread = threading.Thread(target=self._feed, args=[self._staging.ticket()], name=_NAME, daemon=True)
            thread.start()
            self._thread = thread

    def goes_on(self, uses: Sequence[Unit], plan: Places) -> bool:
        """Whether the copies under way are all that these uses need: then they are the run's from now on."""
        if self._thread is None:
            return False
        run = schedule(uses, plan, self._held_before)
        if run.copies != self._run.copies:
            return False
        self._run = run
        return True

    @property
    def running(self) -> bool:
        """Whether copies were started and nobody waited for their end."""
        return self._thread is not None

    def running_for(self, seconds: float) -> bool:
        """Whether copies are still on their way after at most so long."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is not None and self._thread.is_alive()

    @property
    def copies(self) -> tuple[Copy, ...]:
        """Those of the run that was started last."""
        return self._run.copies

    @property
    def poured_bytes(self) -> int:
        """Bytes of that run on their way or there."""
        return self.copied_bytes - self._began_at

    def acquire(self, use: int) -> Memory:
        """The slot of a use; what is enqueued on compute from now on finds its weights in place."""
        if use in self._waiting_for:
            before = self._device.record("compute")
            with self._changed:
                self._changed.wait_for(lambda: use in self._copied or self._error is not None)
            if self._error is not None:
                raise self._error
            self._device.wait("compute", self._copied[use])
            self._waits.append((before, self._device.record("compute")))
        return self._memory[self._run.slots[use]]

    def take_waited_seconds(self) -> float:
        """Seconds that compute stood still for weights since this was asked last in this run; all must be over."""
        waits, self._waits = self._waits, []
        return sum(self._device.elapsed(before, after) for before, after in waits)

    def release(self, use: int) -> None:
        """The use is enqueued: its slot may be overwritten when the compute queue has passed this point."""
        with self._changed:
            self._used[use] = self._device.record("compute")
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait for the copies; with ``stop`` before, only for those under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._device.finish()
            if self._error is not None and not self._stopping:
                raise self._error

    def stop(self) -> None:
        """End the run early: no further copy begins."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.finish()

    def _feed(self, ticket: Ticket) -> None:
        try:
            with self._device.current():
                pieces = (piece for copy in self._run.copies for piece in self._pieces(copy))
                self._staging.pour(ticket, pieces, self._before, self._after, lambda: self._stopping)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _pieces(self, copy: Copy) -> list[Piece]:
        """The pieces that bring a unit into its slot."""
        stored, memory, chunk, kept = self._find(copy.unit), self._memory[copy.slot], self._staging.chunk, self._kept
        total = stored.where.nbytes
        host, there = (None, False) if kept is None else (kept.place(copy.unit, total), kept.holds(copy.unit))

        def piece(at: int) -> Piece:
            end = min(at + chunk, total)
            part = None if host is None else host[at:end]
            return Piece(stored, memory, at, end - at, at == 0, end == total, copy, part, there)

        return [piece(at) for at in range(0, total, chunk)]

    def _before(self, piece: Piece) -> bool:
        """Hold the piece back until its slot is free; False ends the pouring."""
        copy: Copy = piece.owner
        if piece.first:
            after = copy.after_use
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or after is None or after in self._used)
        if self._stopping:
            return False
        if piece.first:
            self.held.pop(copy.slot, None)  # half a unit is none
            if after is not None:
                self._device.wait("copy", self._used[after])
        return True

    def _after(self, piece: Piece) -> None:
        self.copied_bytes += piece.count
        if piece.last:
            copy: Copy = piece.owner
            if self._kept is not None:
                self._kept.filled(copy.unit)
            event = self._device.record("copy")
            with self._changed:
                self.held[copy.slot] = copy.unit
                self._copied[copy.for_use] = event
                self._changed.notify_all()
