"""The library's plugins on torch's tensors, in torch's CUDA context: what an engine would have them do."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from plugins import torch_op
from plugins.plan import decode, shape_of
from plugins.torch_dtypes import torch_dtype
from tests.support.native_build import Native, with_probe

Pointers = ctypes.Array[ctypes.c_void_p]


class LibraryPlugin:
    """A plugin of the library, rebuilt from what it serialized and attached in the current context."""

    def __init__(self, native: Native, plan: bytes) -> None:
        self._calls = _functions(str(native.folder / "libgpu_probe.so"))
        self.plan = decode(plan)
        path, op = str(native.library).encode(), self.plan.op.encode()
        self._plugin = ctypes.c_void_p(self._calls.gpu_probe_make(path, op, plan, ctypes.c_int64(len(plan))))
        assert self._plugin, f"{self.plan.op}: not made"

    def prepare(self, inputs: Sequence[torch.Tensor]) -> _Prepared:
        """Outputs and workspace for these inputs, full of NaN where torch is told so."""
        shapes = [tuple(tensor.shape) for tensor in inputs]
        flat = [dim for shape in shapes for dim in shape]
        ranks = (ctypes.c_int32 * len(shapes))(*map(len, shapes))
        dims = (ctypes.c_int64 * len(flat))(*flat)
        workspace = self._calls.gpu_probe_shapes(self._plugin, len(shapes), ranks, dims)
        assert workspace >= 0, f"{self.plan.op} refuses {shapes}"
        symbols = self.plan.bind(shapes)
        outputs = [
            torch.empty(shape_of(s, symbols), dtype=torch_dtype(s.dtype), device="cuda") for s in self.plan.outputs
        ]
        return _Prepared(list(inputs), outputs, torch.empty(max(1, workspace), dtype=torch.uint8, device="cuda"))

    def enqueue(self, on: _Prepared) -> None:
        """Enqueue on torch's current stream."""
        assert self._calls.gpu_probe_enqueue(self._plugin, *on.arguments()) == 0, self.plan.op

    def seconds(self, on: _Prepared, times: int) -> float:
        """What the host takes for so many times enqueue."""
        return float(self._calls.gpu_probe_seconds(self._plugin, *on.arguments(), times))

    def close(self) -> None:
        self._calls.gpu_probe_drop(self._plugin)


class _Prepared:
    """Tensors of one call."""

    def __init__(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor], workspace: torch.Tensor) -> None:
        self.inputs, self.outputs, self.workspace = inputs, outputs, workspace

    def arguments(self) -> tuple[Pointers, Pointers, ctypes.c_void_p, ctypes.c_void_p]:
        stream = torch.cuda.current_stream().cuda_stream
        addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in (self.inputs, self.outputs)]
        inputs, outputs = ((ctypes.c_void_p * len(each))(*each) for each in addresses)
        return inputs, outputs, ctypes.c_void_p(self.workspace.data_ptr()), ctypes.c_void_p(stream)


def _functions(path: str) -> Any:
    calls = ctypes.CDLL(path)
    calls.gpu_probe_make.restype = ctypes.c_void_p
    calls.gpu_probe_shapes.restype = ctypes.c_int64
    calls.gpu_probe_seconds.restype = ctypes.c_double
    return calls


class BothWays:
    """In place of torch_op.run_plan: every plan runs by the executor and by the library, and bit for bit the same.

    ``compared``: op → how many times.
    """

    def __init__(self, native: Native, patch: pytest.MonkeyPatch) -> None:
        self._native, self._by_executor = native, torch_op.run_plan
        self._plugins: dict[bytes, LibraryPlugin] = {}
        self.compared: dict[str, int] = {}
        patch.setattr(torch_op, "run_plan", self._run)

    def _run(self, plan: bytes, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        wanted = self._by_executor(plan, inputs)
        if plan not in self._plugins:
            self._plugins[plan] = LibraryPlugin(self._native, plan)
        plugin = self._plugins[plan]
        prepared = plugin.prepare(inputs)
        plugin.enqueue(prepared)
        for ours, theirs in zip(prepared.outputs, wanted, strict=True):
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), plugin.plan.op
        self.compared[plugin.plan.op] = self.compared.get(plugin.plan.op, 0) + 1
        return wanted

    def close(self) -> None:
        torch.cuda.synchronize()
        for plugin in self._plugins.values():
            plugin.close()


def microseconds(plan: bytes, inputs: Sequence[torch.Tensor], times: int) -> tuple[float, float]:
    """Host time a launch through the library and through the Python executor, of so many times enqueue."""
    plugin = LibraryPlugin(with_probe(), plan)
    prepared = plugin.prepare(inputs)
    executor = torch_op.executor(plan, inputs[0].device.index)
    shapes = [tuple(tensor.shape) for tensor in inputs]
    inputs_at, outputs_at = ([t.data_ptr() for t in tensors] for tensors in (prepared.inputs, prepared.outputs))
    stream = torch.cuda.current_stream().cuda_stream

    def by_python() -> float:
        start = time.perf_counter()
        for _ in range(times):
            executor.run(shapes, inputs_at, outputs_at, prepared.workspace.data_ptr(), stream)
        return time.perf_counter() - start

    def by_library() -> float:
        return plugin.seconds(prepared, times)

    launches = times * len(plugin.plan.launches)
    library, python = (1e6 * _fastest(once) / launches for once in (by_library, by_python))
    plugin.close()
    return library, python


def _fastest(once: Callable[[], float]) -> float:
    taken = []
    for _ in range(10):
        taken.append(once())
        torch.cuda.synchronize()  # or the queue fills, and the host waits for the GPU
    return min(taken)
