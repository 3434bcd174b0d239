"""From files to the device through a bounded ring of page-locked buffers: reading is parallel, order is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.backends.protocol import Device, Event, HostMemory, Memory
from runtime.layout import Layout
from runtime.weights.file import WeightsFile

if TYPE_CHECKING:
    from runtime.weights.streaming import Copy

CHUNK = 32 << 20  # bytes of a buffer: large enough that a copy runs at full rate
BUFFERS = 8  # all that is ever page-locked: 256 MiB
READERS = 8  # threads; one alone does not read as fast as a GPU takes


def pinned_bytes(largest: int) -> int:
    """Page-locked host memory at most, where the largest slot has so many bytes."""
    return min(CHUNK, largest) * BUFFERS


@dataclass(frozen=True)
class Piece:
    """A part of one unit's slot: bytes [offset, offset + count) of the slot, from the tensors ``prefix``…"""

    file: WeightsFile
    prefix: str
    where: Layout
    memory: Memory
    offset: int
    count: int
    first: bool
    last: bool
    owner: Copy


class Staging:
    """Reads pieces into page-locked buffers ahead of their turn and enqueues their copies in order."""

    def __init__(self, device: Device, files: Mapping[str, WeightsFile], layouts: Mapping[str, Layout], layers: int):
        self._device, self._files, self._layouts, self._layers = device, files, layouts, layers
        self._chunk = min(CHUNK, max(where.nbytes for where in layouts.values()))
        self._buffers: list[HostMemory] = []
        self._events: list[Event | None] = [None] * BUFFERS
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="turbotrt-read")
        self.copied_bytes = 0

    def pieces(self, owner: Copy, memory: Memory) -> list[Piece]:
        """The pieces that bring ``owner.unit`` (expert, unit) into a slot."""
        expert, unit = owner.unit
        stage = "embed" if unit == 0 else "head" if unit > self._layers else "block"
        prefix = f"blocks.{unit - 1}." if stage == "block" else ""
        where = self._layouts[stage]
        starts = range(0, where.nbytes, self._chunk)
        return [
            Piece(
                self._files[expert],
                prefix,
                where,
                memory,
                at,
                min(self._chunk, where.nbytes - at),
                at == 0,
                at + self._chunk >= where.nbytes,
                owner,
            )
            for at in starts
        ]

    def pour(self, pieces: Iterable[Piece], before: Callable[[Piece], bool], after: Callable[[Piece], None]) -> None:
        """Read and copy all pieces. ``before`` may hold a piece back or end it all; ``after`` hears each enqueued."""
        under_way: deque[tuple[Piece, int, Future[None]]] = deque()
        try:
            for turn, piece in enumerate(pieces):
                if len(under_way) == BUFFERS and not self._enqueue(*under_way.popleft(), before, after):
                    return
                index = turn % BUFFERS
                under_way.append((piece, index, self._pool.submit(self._read, piece, self._free_buffer(index))))
            while under_way:
                if not self._enqueue(*under_way.popleft(), before, after):
                    return
        finally:
            for _, _, reading in under_way:
                reading.cancel() or reading.exception()  # a buffer being read into is not free yet

    def close(self) -> None:
        """Give the buffers back; nothing may be under way."""
        self._pool.shutdown()
        for buffer in self._buffers:
            buffer.free()
        self._buffers.clear()

    def _free_buffer(self, index: int) -> HostMemory:
        """The buffer of a turn, when the copy that last used it is over."""
        if index == len(self._buffers):
            self._buffers.append(self._device.pinned(self._chunk))
        if (event := self._events[index]) is not None:
            self._device.finish(event)
            self._events[index] = None
        return self._buffers[index]

    def _read(self, piece: Piece, buffer: HostMemory) -> None:
        piece.file.fill(piece.prefix, piece.where, piece.offset, buffer.array[: piece.count])

    def _enqueue(
        self,
        piece: Piece,
        index: int,
        reading: Future[None],
        before: Callable[[Piece], bool],
        after: Callable[[Piece], None],
    ) -> bool:
        reading.result()
        if not before(piece):
            return False
        source = self._buffers[index].array[: piece.count]
        self._device.upload(piece.memory, piece.offset, source, "copy")
        self._events[index] = self._device.record("copy")
        self.copied_bytes += piece.count
        after(piece)
        return True
