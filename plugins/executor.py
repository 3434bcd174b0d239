"""Runs launch plans with cuda-python on given pointers and a stream: no torch, no Triton, no allocation.

The torch ops on CUDA and the TensorRT plugin's enqueue both come through here, so that
what one measures the other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plugins.expr import evaluate, from_plain
from plugins.plan import KernelImage, Plan

STATIC_SHARED_LIMIT = 48 * 1024  # bytes; more needs the opt-in attribute


@dataclass(frozen=True)
class _Resolved:
    """A plan's launches for fixed input shapes: argument values, with pointers still named by slot."""

    configs: list[tuple[Any, Any, list[tuple[str, int]]]]
    offsets: list[int]


class PlanExecutor:
    """A plan's kernels loaded in the current CUDA context, ready to be launched for any shapes."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._kernels = [_load(image) for image in plan.kernels]
        names = [spec.name for spec in (*plan.inputs, *plan.outputs, *plan.buffers)]
        self._slots = {name: index for index, name in enumerate(names)}
        self._resolved: dict[tuple[tuple[int, ...], ...], _Resolved] = {}

    def workspace_bytes(self, shapes: Sequence[Sequence[int]]) -> int:
        """Workspace in bytes for these input shapes."""
        return evaluate(self.plan.workspace_bytes, self.plan.bind(shapes))

    def run(
        self,
        shapes: Sequence[Sequence[int]],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Enqueue the launches. Pointers are device addresses (256-byte aligned workspace), stream a cudaStream_t."""
        from cuda.core import Stream, launch

        key = tuple(tuple(shape) for shape in shapes)
        if key not in self._resolved:
            self._resolved[key] = self._resolve(key)
        resolved = self._resolved[key]
        pointers = [*inputs, *outputs, *(workspace + offset for offset in resolved.offsets)]
        scratch = pointers[-1]
        handle = Stream.from_handle(stream)
        for config, kernel, args in resolved.configs:
            values = [pointers[value] if kind == "tensor" else value for kind, value in args]
            launch(handle, config, kernel, *map(_argument, args, values), scratch, 0)

    def _resolve(self, shapes: Sequence[Sequence[int]]) -> _Resolved:
        from cuda.core import LaunchConfig

        symbols = self.plan.bind(shapes)
        offsets, total = [], 0
        for size in self.plan.workspace:
            offsets.append(total)
            total += evaluate(size, symbols)
        configs = []
        for spec in self.plan.launches:
            image = self.plan.kernels[spec.kernel]
            grid = tuple(evaluate(from_plain(dim), symbols) for dim in spec.grid)
            config = LaunchConfig(grid=grid, block=(32 * image.num_warps, 1, 1), shmem_size=image.shared)
            args = [self._slot(kind, value, symbols) for kind, value in spec.args]
            configs.append((config, self._kernels[spec.kernel], args))
        return _Resolved(configs, offsets or [0])

    def _slot(self, kind: str, value: Any, symbols: dict[str, int]) -> tuple[str, int]:
        if kind == "tensor":
            return kind, self._slots[value]
        return kind, evaluate(from_plain(value), symbols)


def _argument(slot: tuple[str, int], value: int) -> Any:
    import numpy as np

    return value if slot[0] == "tensor" else np.int32(value)


def _load(image: KernelImage) -> Any:
    from cuda.bindings import driver
    from cuda.core import ObjectCode

    kernel = ObjectCode.from_cubin(image.cubin).get_kernel(image.name)
    if image.shared > STATIC_SHARED_LIMIT:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device = driver.cuCtxGetDevice()[1]
        handle = driver.CUkernel(int(kernel.handle))
        (status,) = driver.cuKernelSetAttribute(attribute, image.shared, handle, device)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{image.name} wants {image.shared} bytes of shared memory: {status}")
    return kernel
