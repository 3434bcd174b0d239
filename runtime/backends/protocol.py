"""The protocols between what drives a bundle and what runs it: a device that holds memory, a runner of stages.

Work goes to two queues, ``compute`` and ``copy``; each keeps its order, and events order one after the other. On a CUDA
device they are streams; on the CPU everything is done when the call returns, and events mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.dims import Sizes
from runtime.layout import Layout, Place

Bytes = npt.NDArray[np.uint8]
Queue = Literal["compute", "copy"]
Event = Any  # the device's own
Activations = Callable[[str, Sizes], int]  # bytes of a stage at these sizes, as ``Runner.activation_bytes``


class BackendError(UserError):
    """The backend could not load or run a stage; the message carries its own last words."""


class Memory(Protocol):
    """An allocation on the device, aligned to 256 bytes."""

    @property
    def nbytes(self) -> int: ...

    def free(self) -> None:
        """Give it back; nothing may be running on it."""


class HostMemory(Protocol):
    """Page-locked memory of the host, from which copies run behind compute."""

    @property
    def array(self) -> Bytes: ...

    def free(self) -> None: ...


class Device(Protocol):
    """Memory, copies and the order between them."""

    name: str

    def current(self) -> AbstractContextManager[None]:
        """Make the device the calling thread's own for the block."""

    def allocate(self, nbytes: int) -> Memory: ...

    def pinned(self, nbytes: int) -> HostMemory: ...

    def upload(self, target: Memory, offset: int, source: Bytes, queue: Queue) -> None:
        """Enqueue host → device; ``source`` stays as it is until an event recorded after it has passed."""

    def download(self, source: Memory, offset: int, target: Bytes) -> None:
        """Device → host, after everything in the compute queue; done on return."""

    def fetch(self, source: Memory, offset: int, target: Bytes, queue: Queue) -> None:
        """Enqueue device → page-locked host memory, whose bytes are there once an event recorded after it passed."""

    def record(self, queue: Queue) -> Event: ...

    def wait(self, queue: Queue, event: Event) -> None:
        """What is enqueued from now on runs after the event."""

    def finish(self, event: Event | None = None) -> None:
        """Block until the event, or until all queues are empty."""

    def elapsed(self, start: Event, end: Event) -> float:
        """Seconds between two finished events."""

    def free_bytes(self) -> int | None:
        """Memory that can still be allocated; None where it is the host's own."""

    def take_peak(self) -> int | None:
        """Bytes in use at most since this was asked last, or since the device was opened; None where nobody counts."""

    def close(self) -> None:
        """Give the device up; all memory must be freed, and nothing may be current."""


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in device memory."""

    memory: Memory
    place: Place


def tensors(memory: Memory, where: Layout) -> dict[str, DeviceTensor]:
    """The tensors of a layout in one allocation."""
    return {name: DeviceTensor(memory, place) for name, place in where.places.items()}


class Runner(Protocol):
    """Runs the stages of one bundle on one device. Weights are given with every call."""

    @property
    def device(self) -> Device: ...

    @property
    def overhead_bytes(self) -> int:
        """Bytes that running the DiT takes besides weights, activations, inputs and outputs."""

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        """Bytes a stage needs while it runs at these sizes, besides its inputs, outputs and weights."""

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        """Get ready to run these stages at these sizes: activation memory is allocated, or made larger."""

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """Enqueue a stage, prepared before, on the compute queue. ``inputs`` holds activations and weights.

        Raises BackendError.
        """

    def release(self) -> None:
        """Free what ``prepare`` took."""

    def close(self) -> None:
        """Free everything but the device."""
