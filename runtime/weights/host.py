"""Weights that wait in page-locked memory of the host: read from the file once, copied from there ever after."""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.protocol import Bytes, Device, HostMemory
from runtime.weights.streaming import Unit


class HostWeights:
    """Units in the order in which they come, up to ``limit`` bytes; those that find no room are not kept."""

    def __init__(self, device: Device, limit: int) -> None:
        self._device, self.limit = device, limit
        self._memories: dict[Unit, HostMemory] = {}
        self._sizes: dict[Unit, int] = {}
        self._filled: set[Unit] = set()

    def allow(self, limit: int, unload: Callable[[], None]) -> None:
        """Another limit; where it is below what is kept, nothing is any more: ``unload`` ends the copies from it."""
        if limit < self.nbytes:
            unload()
            self.close()
        self.limit = limit

    @property
    def nbytes(self) -> int:
        """Bytes that are page-locked."""
        return sum(self._sizes.values())

    def place(self, unit: Unit, nbytes: int) -> Bytes | None:
        """The memory of a unit; None where there is no room for it."""
        if unit not in self._memories:
            if self.nbytes + nbytes > self.limit:
                return None
            self._memories[unit] = self._device.pinned(nbytes)
            self._sizes[unit] = nbytes
        return self._memories[unit].array

    def holds(self, unit: Unit) -> bool:
        """Whether all of a unit's bytes are in its memory."""
        return unit in self._filled

    def filled(self, unit: Unit) -> None:
        """All of them are from now on."""
        if unit in self._memories:
            self._filled.add(unit)

    def close(self) -> None:
        """Give the memory back; no copy may be under way."""
        self._filled.clear()
        self._sizes.clear()
        while self._memories:
            self._memories.popitem()[1].free()
