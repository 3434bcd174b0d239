"""The part "machine": what is here, seen from a process that may end for it."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from msgspec.structs import replace

from exporter.doctor.gpu import look
from exporter.selftest.rows import Case, Machine
from exporter.selftest.step import Finding, Setting, Step
from plugins.library import library_path, library_version
from runtime.backends.cuda_device import CudaDevice
from runtime.versions import installed_versions

_PACKAGES = (
    "turbotrt",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-bindings",
    "cuda-core",
    "numpy",
    "torch",
    "triton",
    "onnx",
    "polygraphy",
)


def steps(setting: Setting, case: Case) -> Iterator[Step]:
    """One look around."""
    yield Step("looked around", _look)


def _look() -> Iterator[Finding]:
    gpus, library = look(), library_path()
    found = Machine(
        gpu=None,
        gpus=len(gpus.devices),
        cuda=gpus.cuda,
        driver=gpus.driver,
        why_not=gpus.why_none,
        system=platform.platform(),
        python=platform.python_version(),
        packages=installed_versions(_PACKAGES),
        plugin_library=None if library is None else f"{library.name} {library_version(library)}",
    )
    if gpus.devices:
        first = gpus.devices[0]  # the one that a backend takes
        facts = {"gpu": first.name, "sm": first.sm, "memory_bytes": first.memory_bytes, "exports": first.exports}
        found = replace(found, **facts, free_bytes=_free_bytes())
    yield Finding("machine", machine=found)


def _free_bytes() -> int | None:
    device = CudaDevice()
    with device.current():
        free = device.free_bytes()
    device.close()
    return free
