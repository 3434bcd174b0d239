"""The CUDA device of the TensorRT backend, through the driver: two streams, plain allocations, events."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from plugins.errors import UserError
from runtime.backends.protocol import Bytes, Queue


def driver() -> Any:
    """cuda.bindings' driver module."""
    from cuda.bindings import driver as module

    return module


def checked(result: tuple[Any, ...]) -> Any:
    """The values of a driver call, without its status. Raises UserError where there is no room, else RuntimeError."""
    status, *values = result
    if int(status) == 2:  # CUDA_ERROR_OUT_OF_MEMORY
        raise UserError(
            "The GPU or the host has not that much memory free.",
            got="CUDA_ERROR_OUT_OF_MEMORY",
            remedy="a smaller --vram, or end what else uses the GPU",
        )
    if int(status) != 0:
        raise RuntimeError(f"the CUDA driver answered {status!r}")
    return values[0] if len(values) == 1 else tuple(values)


def compute_capability(ordinal: int = 0) -> int | None:
    """10·major + minor of a GPU, or None where there is none or no driver."""
    cuda = driver()
    try:
        if int(cuda.cuInit(0)[0]) != 0:
            return None
    except RuntimeError:  # no libcuda at all
        return None
    status, count = cuda.cuDeviceGetCount()
    if int(status) != 0 or ordinal >= count:
        return None
    device = checked(cuda.cuDeviceGet(ordinal))
    kinds = cuda.CUdevice_attribute
    major = checked(cuda.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = checked(cuda.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    return 10 * int(major) + int(minor)


def open_early(ordinal: int = 0) -> None:
    """Begin to open a GPU in a thread, for whoever uses it later: its context takes a part of a second, without Python.

    It stays open to the end of the process. Where there is no GPU, nothing happens.
    """

    def work() -> None:
        cuda = driver()
        with suppress(RuntimeError):  # no libcuda at all
            if compute_capability(ordinal) is not None:
                cuda.cuDevicePrimaryCtxRetain(checked(cuda.cuDeviceGet(ordinal)))

    threading.Thread(target=work, name="turbotrt-open", daemon=True).start()


class CudaMemory:
    """An allocation on the device; ``address`` is its device address. ``count`` is told of bytes taken and given."""

    def __init__(self, nbytes: int, count: Callable[[int], None]) -> None:
        self.nbytes, self._count = nbytes, count
        self.address = int(checked(driver().cuMemAlloc(nbytes)))
        count(nbytes)

    def free(self) -> None:
        if self.address:
            checked(driver().cuMemFree(self.address))
            self.address = 0
            self._count(-self.nbytes)


class PinnedMemory:
    """Page-locked memory of the host."""

    def __init__(self, nbytes: int) -> None:
        self._address = int(checked(driver().cuMemHostAlloc(nbytes, 0)))
        self.array: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self._address))

    def free(self) -> None:
        if self._address:
            self.array = np.empty(0, np.uint8)
            checked(driver().cuMemFreeHost(self._address))
            self._address = 0


class CudaEvent:
    """A CUDA event, destroyed with its last reference."""

    def __init__(self) -> None:
        self.handle = checked(driver().cuEventCreate(0))

    def __del__(self) -> None:
        driver().cuEventDestroy(self.handle)  # a context that is gone took its events with it


class CudaDevice:
    """One GPU in its primary context, which torch and others in the process share. Closed by ``close``."""

    def __init__(self, ordinal: int = 0) -> None:
        cuda = driver()
        self._live = self._peak = 0
        checked(cuda.cuInit(0))
        self._device = checked(cuda.cuDeviceGet(ordinal))
        self._context = checked(cuda.cuDevicePrimaryCtxRetain(self._device))
        self.name = checked(cuda.cuDeviceGetName(96, self._device)).split(b"\0")[0].decode()
        with self.current():
            flag = int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self._streams = {queue: checked(cuda.cuStreamCreate(flag)) for queue in ("compute", "copy")}

    @property
    def stream(self) -> int:
        """The compute stream as a cudaStream_t."""
        return int(self._streams["compute"])

    def close(self) -> None:
        """Give up streams and context; all memory must be freed."""
        cuda = driver()
        if self._context is None:
            return
        with self.current():
            for stream in self._streams.values():
                checked(cuda.cuStreamDestroy(stream))
        checked(cuda.cuDevicePrimaryCtxRelease(self._device))
        self._context = None

    @contextmanager
    def current(self) -> Iterator[None]:
        checked(driver().cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            checked(driver().cuCtxPopCurrent())

    def allocate(self, nbytes: int) -> CudaMemory:
        return CudaMemory(nbytes, self._counted)

    def pinned(self, nbytes: int) -> PinnedMemory:
        return PinnedMemory(nbytes)

    def upload(self, target: Any, offset: int, source: Bytes, queue: Queue) -> None:
        where = target.address + offset
        checked(driver().cuMemcpyHtoDAsync(where, source.ctypes.data, source.nbytes, self._streams[queue]))

    def download(self, source: Any, offset: int, target: Bytes) -> None:
        self.fetch(source, offset, target, "compute")
        checked(driver().cuStreamSynchronize(self._streams["compute"]))

    def fetch(self, source: Any, offset: int, target: Bytes, queue: Queue) -> None:
        where, stream = source.address + offset, self._streams[queue]
        checked(driver().cuMemcpyDtoHAsync(target.ctypes.data, where, target.nbytes, stream))

    def record(self, queue: Queue) -> CudaEvent:
        event = CudaEvent()
        checked(driver().cuEventRecord(event.handle, self._streams[queue]))
        return event

    def wait(self, queue: Queue, event: CudaEvent) -> None:
        checked(driver().cuStreamWaitEvent(self._streams[queue], event.handle, 0))

    def finish(self, event: CudaEvent | None = None) -> None:
        if event is not None:
            checked(driver().cuEventSynchronize(event.handle))
            return
        for stream in self._streams.values():
            checked(driver().cuStreamSynchronize(stream))

    def elapsed(self, start: CudaEvent, end: CudaEvent) -> float:
        return float(checked(driver().cuEventElapsedTime(start.handle, end.handle))) / 1e3

    def free_bytes(self) -> int | None:
        free, _ = checked(driver().cuMemGetInfo())
        return int(free)

    def take_peak(self) -> int | None:
        """Of what was allocated here; the code of engines and the CUDA context are the driver's."""
        peak, self._peak = self._peak, self._live
        return peak

    def _counted(self, nbytes: int) -> None:
        self._live += nbytes
        self._peak = max(self._peak, self._live)
