"""Slots in device memory for the weights of one part, and the stream that fills them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plugins.interrupts import Ending
from runtime.backends.protocol import Device, DeviceTensor, Memory, tensors
from runtime.weights.streaming import Kept, Places, Slot, Unit, WeightStream, schedule, slots_of
from runtime.weights.upload import Staging, Stored

_POLL = 0.05  # seconds between two movements of a bar


class Slots:
    """The weights that a run's ``uses`` need, in as many slots as ``plan`` gives them.

    ``close`` frees all memory, once; copies that an interruption left under way end first.
    """

    def __init__(
        self,
        device: Device,
        staging: Staging,
        plan: Places,
        uses: Sequence[Unit],
        find: Callable[[Unit], Stored],
        kept: Kept | None = None,
    ) -> None:
        self._device, self._plan, self._find = device, plan, find
        memories: dict[Slot, Memory] = {}
        self.stream = WeightStream(device, staging, memories, find, kept)
        self.close = Ending(self, _close, device, self.stream, memories, atexit=False)  # a process's end frees all
        try:
            for slot, unit in slots_of(plan, uses).items():
                memories[slot] = device.allocate(find(unit).where.nbytes)
            device.finish()  # torch's allocator may hand out what the compute queue still reads, and copies do not wait
        except BaseException:
            self.close()
            raise

    def prefetch(self, uses: Sequence[Unit]) -> None:
        """Start to bring what these uses need and finds a free slot."""
        if self.stream.running:
            return
        planned = schedule(uses, self._plan, self.stream.held)
        copies = tuple(copy for copy in planned.copies if copy.after_use is None)
        if copies:
            self.stream.start(planned.only(copies))

    def finish(self, update: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Wait for what was started; ``update`` hears of bytes on their way, and of all. Raises what stopped them."""
        total = sum(self._find(copy.unit).where.nbytes for copy in self.stream.copies)
        while self.stream.running_for(_POLL):
            update(self.stream.poured_bytes, total)
        self.stream.finish()

    def begin(self, uses: Sequence[Unit]) -> None:
        """Start the copies that these uses need; what a prefetch has not brought comes in their order."""
        if self.stream.goes_on(uses, self._plan):
            return
        self.stream.stop()
        self.stream.start(schedule(uses, self._plan, self.stream.held))

    def weights(self, use: int, unit: Unit) -> dict[str, DeviceTensor]:
        """The weights of a use by the engine's names, in place by the time its work begins."""
        return tensors(self.stream.acquire(use), self._find(unit).where)


def _close(device: Device, stream: WeightStream, memories: dict[Slot, Memory]) -> None:
    with device.current():
        stream.stop()
        for memory in memories.values():
            memory.free()
        memories.clear()
