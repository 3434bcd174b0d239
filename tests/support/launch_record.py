"""What the Python executor launches for a plan, written down in place of being launched; no driver is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from plugins import executor
from plugins.executor import PlanExecutor
from plugins.plan import KernelImage, Plan

STREAM = 7 << 32
INPUT, OUTPUT, WORKSPACE = (1, 101, 1001)  # addresses in units of 4 GiB, as the probe has them


def fnv(data: bytes) -> int:
    """The number by which the stand-in driver knows a cubin (FNV-1a)."""
    value = 14695981039346656037
    for byte in data:
        value = (value ^ byte) * 1099511628211 & (1 << 64) - 1
    return value


class Recorder:
    """Runs plans through ``PlanExecutor`` with cuda-python's launches replaced by notes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        import cuda.core

        self._launches: list[dict[str, Any]] = []
        self._known: dict[bytes, int] = {}
        patch.setattr(executor, "_load", self._load)
        patch.setattr(cuda.core, "Stream", _Stream)
        patch.setattr(cuda.core, "LaunchConfig", dict)
        patch.setattr(cuda.core, "launch", self._launch)

    def executor(self, plan: Plan) -> PlanExecutor:
        """An executor of the plan, of the class that runs it on GPUs."""
        return PlanExecutor(plan)

    def record(self, made: PlanExecutor, shapes: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """The launches for these input shapes, as the probe tells of them."""
        plan = made.plan
        inputs = [(INPUT + i) << 32 for i in range(len(plan.inputs))]
        outputs = [(OUTPUT + i) << 32 for i in range(len(plan.outputs))]
        self._launches = []
        made.run(shapes, inputs, outputs, WORKSPACE << 32, STREAM)
        return self._launches

    def _load(self, image: KernelImage) -> KernelImage:
        if image.cubin not in self._known:
            self._known[image.cubin] = fnv(image.cubin)
        return image

    def _launch(self, stream: int, config: dict[str, Any], image: KernelImage, *arguments: Any) -> None:
        self._launches.append(
            {
                "name": image.name,
                "cubin": self._known[image.cubin],
                "grid": list(config["grid"]),
                "block": list(config["block"]),
                "shared": config["shmem_size"],
                "opted": image.shared if image.shared > executor.STATIC_SHARED_LIMIT else 0,
                "stream": stream,
                "context": 1,
                "sizes": [8 if isinstance(value, int) else value.itemsize for value in arguments],
                "values": [int(value) for value in arguments],
            }
        )


class _Stream:
    @staticmethod
    def from_handle(handle: int) -> int:
        return handle
