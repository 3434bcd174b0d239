"""A CUDA device through torch's streams and allocator, or the CPU: memory, copies and their order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from plugins.torch_dtypes import torch_dtype
from runtime.backends.protocol import Bytes, DeviceTensor, Queue


class TorchMemory:
    """A torch allocation of bytes."""

    def __init__(self, nbytes: int, device: torch.device, *, pinned: bool = False) -> None:
        self.tensor = torch.empty(nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)
        self.nbytes = nbytes

    @property
    def array(self) -> Bytes:
        return self.tensor.numpy()  # type: ignore[no-any-return]

    def free(self) -> None:
        self.tensor = torch.empty(0, dtype=torch.uint8)


class TorchDevice:
    """One CUDA device through torch's streams and allocator, or the CPU, where nothing runs behind anything."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.name = device, str(device)
        self.cuda = device.type == "cuda"
        self.streams: dict[Queue, Any] = {}
        if self.cuda:
            # The stream that is current, not one of our own: cuBLAS keeps a workspace for every stream it ever saw.
            self.streams = {"compute": torch.cuda.current_stream(device), "copy": torch.cuda.Stream(device)}
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def current(self) -> Iterator[None]:
        if not self.cuda:
            yield
            return
        with torch.cuda.device(self.device):
            yield

    def allocate(self, nbytes: int) -> TorchMemory:
        with self.on("compute"):  # torch's allocator keeps a pool for each stream
            return TorchMemory(nbytes, self.device)

    def pinned(self, nbytes: int) -> TorchMemory:
        return TorchMemory(nbytes, torch.device("cpu"), pinned=self.cuda)

    def upload(self, target: Any, offset: int, source: Bytes, queue: Queue) -> None:
        with self.on(queue):
            place = target.tensor[offset : offset + source.nbytes]
            place.copy_(torch.from_numpy(source), non_blocking=True)

    def download(self, source: Any, offset: int, target: Bytes) -> None:
        with self.on("compute"):
            torch.from_numpy(target).copy_(source.tensor[offset : offset + target.nbytes])

    def fetch(self, source: Any, offset: int, target: Bytes, queue: Queue) -> None:
        with self.on(queue):
            place = source.tensor[offset : offset + target.nbytes]
            torch.from_numpy(target).copy_(place, non_blocking=True)

    def record(self, queue: Queue) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.streams[queue])
        return event

    def wait(self, queue: Queue, event: Any) -> None:
        if self.cuda:
            self.streams[queue].wait_event(event)

    def finish(self, event: Any = None) -> None:
        if not self.cuda:
            return
        if event is not None:
            event.synchronize()
        else:
            for stream in self.streams.values():
                stream.synchronize()

    def elapsed(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1e3 if self.cuda else float(end - start)

    def free_bytes(self) -> int | None:
        """What the driver has free, and what torch's allocator keeps unused."""
        if not self.cuda:
            return None
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + int(unused)

    def take_peak(self) -> int | None:
        """By torch's allocator, of the whole process."""
        if not self.cuda:
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return int(peak)

    def close(self) -> None:
        """Hand what torch's allocator keeps unused back to the driver."""
        if self.cuda:
            torch.cuda.empty_cache()

    @contextmanager
    def on(self, queue: Queue) -> Iterator[None]:
        if not self.cuda:
            yield
            return
        with torch.cuda.stream(self.streams[queue]):
            yield


def tensor_of(tensor: DeviceTensor) -> torch.Tensor:
    place = tensor.place
    memory: Any = tensor.memory
    raw = memory.tensor[place.offset : place.offset + place.nbytes]
    return raw.view(torch_dtype(place.dtype)).view(place.shape)
