"""A CUDA driver with one RTX 5090 whose memory is the host's, and whose queues are empty when a call returns."""

from __future__ import annotations

import ctypes
import itertools
import time
from types import SimpleNamespace
from typing import Any

from tests.support.host_executor import patch_executor

patch_executor()

CUdevice_attribute = SimpleNamespace(
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=12, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0
)
CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
_OK = 0
_ALIGNMENT = 256
_handles = itertools.count(1)
_allocations: dict[int, Any] = {}
_events: dict[int, float] = {}


def _done(*values: Any) -> tuple[Any, ...]:
    return (_OK, *values)


def cuInit(flags: int) -> Any:
    return _done()


def cuDriverGetVersion() -> Any:
    return _done(13_010)


def cuDeviceGet(ordinal: int) -> Any:
    return _done(ordinal)


def cuDeviceGetCount() -> Any:
    return _done(1)


def cuDeviceGetAttribute(attribute: int, device: int) -> Any:
    return _done(attribute)


def cuDeviceGetName(length: int, device: int) -> Any:
    return _done(b"NVIDIA GeForce RTX 5090\0")


def cuDeviceTotalMem(device: int) -> Any:
    return _done(32 << 30)


def cuDevicePrimaryCtxRetain(device: int) -> Any:
    return _done(next(_handles))


def cuDevicePrimaryCtxRelease(device: int) -> Any:
    assert not _allocations, "memory was not given back"
    return _done()


def cuCtxPushCurrent(context: int) -> Any:
    return _done()


def cuCtxPopCurrent() -> Any:
    return _done(1)


def cuMemGetInfo() -> Any:
    return _done(30 << 30, 32 << 30)


def cuStreamCreate(flags: int) -> Any:
    return _done(next(_handles))


def cuStreamDestroy(stream: int) -> Any:
    return _done()


def cuStreamSynchronize(stream: int) -> Any:
    return _done()


def cuStreamWaitEvent(stream: int, event: int, flags: int) -> Any:
    return _done()


def cuMemAlloc(nbytes: int) -> Any:
    buffer = (ctypes.c_uint8 * (nbytes + _ALIGNMENT))()
    address = -(-ctypes.addressof(buffer) // _ALIGNMENT) * _ALIGNMENT
    _allocations[address] = buffer
    return _done(address)


def cuMemFree(address: int) -> Any:
    del _allocations[address]
    return _done()


def cuMemHostAlloc(nbytes: int, flags: int) -> Any:
    return cuMemAlloc(nbytes)


def cuMemFreeHost(address: int) -> Any:
    return cuMemFree(address)


def cuMemcpyHtoDAsync(target: int, source: int, nbytes: int, stream: int) -> Any:
    ctypes.memmove(target, source, nbytes)
    return _done()


def cuMemcpyDtoHAsync(target: int, source: int, nbytes: int, stream: int) -> Any:
    ctypes.memmove(target, source, nbytes)
    return _done()


def cuEventCreate(flags: int) -> Any:
    event = next(_handles)
    _events[event] = 0.0
    return _done(event)


def cuEventDestroy(event: int) -> Any:
    del _events[event]
    return _done()


def cuEventRecord(event: int, stream: int) -> Any:
    _events[event] = time.perf_counter()
    return _done()


def cuEventSynchronize(event: int) -> Any:
    return _done()


def cuEventElapsedTime(start: int, end: int) -> Any:
    return _done(1e3 * (_events[end] - _events[start]))
