"""A device whose queues run late, early or in turn, on host memory, and a backend that tells what weights it saw.

What a CUDA device may do and the CPU never does happens here on purpose: a queue runs ahead of the other as far as its
events allow, and not before it must. A missing wait then reads a slot too early, overwrites it too early, or copies
from a buffer that holds the next piece already.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from runtime.backends.kind import BackendKind
from runtime.backends.protocol import DeviceTensor, Queue
from runtime.bundle import Manifest
from runtime.dims import Sizes

Policy = Literal["copies first", "compute first", "nothing until it must"]
POLICIES: tuple[Policy, ...] = ("copies first", "compute first", "nothing until it must")


class Mark:
    """An event: done when its queue has passed it."""

    def __init__(self) -> None:
        self.done = False


class HostMemory:
    def __init__(self, device: LazyDevice, nbytes: int, kind: str) -> None:
        self.array = np.zeros(nbytes, np.uint8)
        self.nbytes, self._device, self._kind = nbytes, device, kind
        device.count(kind, nbytes)

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def free(self) -> None:
        assert self.nbytes, "freed twice"
        self._device.count(self._kind, -self.nbytes)
        self.nbytes = 0


class LazyDevice:
    """``log`` holds what ran, in order; ``peak`` the most bytes of each kind of memory, ``live`` those of now."""

    name = "lazy"

    def __init__(self, policy: Policy) -> None:
        self.order: tuple[Queue, ...] = {
            "copies first": ("copy", "compute"),
            "compute first": ("compute", "copy"),
            "nothing until it must": (),
        }[policy]  # type: ignore[assignment]
        self.queues: dict[Queue, deque[tuple[str, Any]]] = {"compute": deque(), "copy": deque()}
        self.lock = threading.RLock()
        self.log: list[Any] = []
        self.live = {"device": 0, "pinned": 0}
        self.peak = {"device": 0, "pinned": 0}
        self.closed = False

    def count(self, kind: str, nbytes: int) -> None:
        self.live[kind] += nbytes
        self.peak[kind] = max(self.peak[kind], self.live[kind])

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def allocate(self, nbytes: int) -> HostMemory:
        return HostMemory(self, nbytes, "device")

    def pinned(self, nbytes: int) -> HostMemory:
        return HostMemory(self, nbytes, "pinned")

    def upload(self, target: Any, offset: int, source: Any, queue: Queue) -> None:
        def copy() -> None:
            target.array[offset : offset + len(source)] = source

        self.enqueue(queue, copy)

    def download(self, source: Any, offset: int, target: Any) -> None:
        mark = self.record("compute")
        self.finish(mark)
        target[:] = source.array[offset : offset + len(target)]

    def fetch(self, source: Any, offset: int, target: Any, queue: Queue) -> None:
        def copy() -> None:
            target[:] = source.array[offset : offset + len(target)]

        self.enqueue(queue, copy)

    def enqueue(self, queue: Queue, work: Callable[[], None]) -> None:
        with self.lock:
            self.queues[queue].append(("do", work))
            for ready in self.order:
                self._drain(ready)

    def record(self, queue: Queue) -> Mark:
        with self.lock:
            mark = Mark()
            self.queues[queue].append(("mark", mark))
            return mark

    def wait(self, queue: Queue, event: Mark) -> None:
        with self.lock:
            self.queues[queue].append(("wait", event))

    def finish(self, event: Mark | None = None) -> None:
        with self.lock:
            while not (event.done if event else not any(self.queues.values())):
                moved = [self._drain(queue, only=1) for queue in (*self.order, "copy", "compute")]
                assert any(moved), "the queues wait for each other"

    def elapsed(self, start: Mark, end: Mark) -> float:
        assert start.done
        assert end.done
        return 1.0

    def free_bytes(self) -> int | None:
        return None

    def take_peak(self) -> int | None:
        return None

    def close(self) -> None:
        self.closed = True

    def _drain(self, queue: Queue, only: int | None = None) -> int:
        count = 0
        waiting = self.queues[queue]
        while waiting and (only is None or count < only):
            kind, value = waiting[0]
            if kind == "wait" and not value.done:
                break
            waiting.popleft()
            count += 1
            if kind == "do":
                value()
            elif kind == "mark":
                value.done = True
        return count


def digest(arrays: Mapping[str, Any]) -> str:
    """Of tensors by name, as bytes."""
    total = sha256()
    for name in sorted(arrays):
        total.update(name.encode() + bytes(arrays[name]))
    return total.hexdigest()


class TellingRunner:
    """Computes nothing: on the compute queue, it logs the digest of the weights each stage finds in its slot."""

    overhead_bytes = 1000

    def __init__(self, device: LazyDevice, manifest: Manifest) -> None:
        self.device, self._manifest = device, manifest

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        return {"embed": 10, "block": 30, "head": 20}[stage] * sizes["L"]

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        self.memory = self.device.allocate(max(self.activation_bytes(*wanted) for wanted in sizes.items()))

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        weights = {tensor.name: inputs[tensor.name] for tensor in self._manifest.stage(stage).weights}

        def tell() -> None:
            found = {}
            for name, tensor in weights.items():
                memory, place = tensor.memory, tensor.place
                assert isinstance(memory, HostMemory)
                found[name] = memory.array[place.offset : place.offset + place.nbytes]
            self.device.log.append((stage, digest(found)))

        self.device.enqueue("compute", tell)

    def release(self) -> None:
        self.memory.free()

    def close(self) -> None:
        self.device.log.append("closed")


def telling_kind(device: LazyDevice) -> BackendKind:
    """The runner above, as Pipeline.load takes it."""
    return BackendKind(
        "telling",
        check=lambda folder, manifest: None,
        files=lambda manifest, component: [],
        open=lambda folder, manifest, report: TellingRunner(device, manifest),
        activations=lambda manifest: lambda stage, sizes: 0,
        overhead=lambda manifest: 0,
        source="nowhere",
    )
