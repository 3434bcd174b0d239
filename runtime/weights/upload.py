"""From files to the device through a bounded ring of page-locked buffers: reading is parallel, order is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING
from weakref import ref

from runtime.backends.protocol import Bytes, Device, Event, HostMemory, Memory
from runtime.layout import Layout
from runtime.weights.file import WeightsFile

if TYPE_CHECKING:
    from runtime.weights.streaming import Copy

CHUNK = 32 << 20  # bytes of a buffer: large enough that a copy runs at full rate
BUFFERS = 8  # all that is ever page-locked: 256 MiB
READERS = 8  # threads; one alone does not read as fast as a GPU takes
_POLL = 0.02  # seconds between two looks at whether one that waits for its turn is to stop


def pinned_bytes(largest: int) -> int:
    """Page-locked host memory at most, where the largest slot has so many bytes."""
    return min(CHUNK, largest) * BUFFERS


@dataclass(frozen=True)
class Stored:
    """Where the bytes of a unit's slot lie: the tensors ``prefix``… of a file, in the slot's layout."""

    file: WeightsFile
    prefix: str
    where: Layout


@dataclass(frozen=True)
class Piece:
    """A part of one unit's slot: bytes [offset, offset + count).

    ``host``: the page-locked memory that keeps these bytes for the next time, None for one of the ring's buffers;
    ``there``: they are in it already.
    """

    stored: Stored
    memory: Memory
    offset: int
    count: int
    first: bool
    last: bool
    owner: Copy
    host: Bytes | None
    there: bool


class Ticket:
    """A place in the row of those that pour."""


class Staging:
    """Reads pieces into page-locked buffers ahead of their turn and enqueues their copies in order.

    Several streams may share one: whoever took its ticket first pours first, and the next when that is done.
    """

    def __init__(self, device: Device, largest: int) -> None:
        """``largest``: bytes of the largest slot."""
        self._device, self.chunk = device, min(CHUNK, max(1, largest))
        self._buffers: list[HostMemory] = []
        self._events: list[Event | None] = [None] * BUFFERS
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="turbotrt-read")
        self._turns, self._waiting = Condition(), deque[ref[Ticket]]()

    def ticket(self) -> Ticket:
        """A place in the row of those that pour, for ``pour``; one that is dropped is none any more."""
        mine = Ticket()
        with self._turns:
            self._waiting.append(ref(mine))
        return mine

    def pour(
        self,
        ticket: Ticket,
        pieces: Iterable[Piece],
        before: Callable[[Piece], bool],
        after: Callable[[Piece], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Read and copy all pieces, in its turn, unless it is to stop before.

        ``before`` may hold a piece back or end it all; ``after`` hears each enqueued.
        """
        try:
            with self._turns:
                while not self._turns.wait_for(lambda: stopping() or self._first() is ticket, _POLL):
                    pass
            if not stopping():
                self._pour(pieces, before, after)
        finally:
            with self._turns:
                self._waiting.remove(ref(ticket))
                self._turns.notify_all()

    def _first(self) -> Ticket | None:
        """The first in the row, after those whose thread never began."""
        while self._waiting and self._waiting[0]() is None:
            self._waiting.popleft()
        return self._waiting[0]() if self._waiting else None

    def close(self) -> None:
        """Give the buffers back; nothing may be under way."""
        self._pool.shutdown()
        for buffer in self._buffers:
            buffer.free()
        self._buffers.clear()

    def _pour(self, pieces: Iterable[Piece], before: Callable[[Piece], bool], after: Callable[[Piece], None]) -> None:
        under_way: deque[tuple[Piece, int, Bytes, Future[None]]] = deque()
        try:
            for turn, piece in enumerate(pieces):
                if len(under_way) == BUFFERS and not self._enqueue(*under_way.popleft(), before, after):
                    return
                index = turn % BUFFERS
                source = self._free_buffer(index) if piece.host is None else piece.host
                under_way.append((piece, index, source, self._pool.submit(_read, piece, source)))
            while under_way:
                if not self._enqueue(*under_way.popleft(), before, after):
                    return
        finally:
            for *_, reading in under_way:
                reading.cancel() or reading.exception()  # a buffer being read into is not free yet

    def _free_buffer(self, index: int) -> Bytes:
        """The buffer of a turn, when the copy that last used it is over."""
        while index >= len(self._buffers):
            self._buffers.append(self._device.pinned(self.chunk))
        if (event := self._events[index]) is not None:
            self._device.finish(event)
            self._events[index] = None
        return self._buffers[index].array

    def _enqueue(
        self,
        piece: Piece,
        index: int,
        source: Bytes,
        reading: Future[None],
        before: Callable[[Piece], bool],
        after: Callable[[Piece], None],
    ) -> bool:
        reading.result()
        if not before(piece):
            return False
        self._device.upload(piece.memory, piece.offset, source[: piece.count], "copy")
        if piece.host is None:
            self._events[index] = self._device.record("copy")
        after(piece)
        return True


def _read(piece: Piece, target: Bytes) -> None:
    if not piece.there:
        piece.stored.file.fill(piece.stored.prefix, piece.stored.where, piece.offset, target[: piece.count])
