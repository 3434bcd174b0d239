"""The GPUs of this machine as the CUDA driver describes them; no context is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.gpus import GPUS
from runtime.backends.cuda_device import checked, driver

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One device. ``exports``: the --gpu names whose engines run on it, its own product's first."""

    name: str
    sm: int
    memory_bytes: int
    exports: tuple[str, ...]


@dataclass(frozen=True)
class Gpus:
    """All of them, the driver's version and the newest CUDA it runs; ``why_none`` where there is no GPU."""

    devices: tuple[Gpu, ...]
    driver: str | None
    cuda: str | None
    why_none: str | None


def look() -> Gpus:
    """The devices that CUDA_VISIBLE_DEVICES leaves visible. Never raises for a machine without one."""
    try:
        cuda = driver()
    except ImportError as error:
        return Gpus((), _driver_version(), None, f"{error.name} is not installed")
    try:
        (status,) = cuda.cuInit(0)
    except RuntimeError:  # no libcuda at all
        return Gpus((), _driver_version(), None, "no CUDA driver (libcuda.so.1) can be loaded")
    if int(status) != 0:
        return Gpus((), _driver_version(), None, f"the CUDA driver answers {status.name}")
    count = int(checked(cuda.cuDeviceGetCount()))
    version = int(checked(cuda.cuDriverGetVersion()))
    why = None if count else "the CUDA driver sees no GPU"
    devices = tuple(_device(cuda, ordinal) for ordinal in range(count))
    return Gpus(devices, _driver_version(), f"{version // 1000}.{version % 1000 // 10}", why)


def exports_for(name: str, sm: int) -> tuple[str, ...]:
    """The --gpu names for a device: engines are for an SM, so the parts of one SM share them; its own name first."""
    fitting = [gpu for gpu in GPUS.values() if gpu.sm == sm]
    return tuple(gpu.name for gpu in sorted(fitting, key=lambda gpu: _number(gpu.product) not in name.split()))


def _device(cuda: Any, ordinal: int) -> Gpu:
    device = checked(cuda.cuDeviceGet(ordinal))
    name = checked(cuda.cuDeviceGetName(128, device)).split(b"\0")[0].decode(errors="replace")
    attribute = cuda.CUdevice_attribute
    major = checked(cuda.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = checked(cuda.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    sm = int(major) * 10 + int(minor)
    return Gpu(name, sm, int(checked(cuda.cuDeviceTotalMem(device))), exports_for(name, sm))


def _number(product: str) -> str:
    """The word of a product's name that holds its number: "5070" of "GeForce RTX 5070 Ti"."""
    return next(word for word in product.split() if re.search(r"\d", word))


def _driver_version() -> str | None:
    """The kernel module's version, as it writes it; None where it is not loaded."""
    try:
        found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None
