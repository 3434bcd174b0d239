"""The real tensorrt_rtx module with a Runtime that stands in: its engines run the stage functions on raw addresses.

What deserializing needs a driver and an RTX part for is replaced; logger, enums and plugin registry are the real ones.
The context is as strict as TensorRT's: shapes set, memory of the right size given, every tensor bound, else no run.
"""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import tensorrt_rtx
import torch

from exporter.torch_backend.runner import run_stage, stage_functions
from plugins.dtypes import DTYPES
from plugins.torch_dtypes import torch_dtype
from runtime.bundle import FileInfo, Manifest, StageEntry, TensorInfo, file_info, write_manifest
from runtime.dims import shape_of, split_dim
from tests.support.host_executor import host_view as host_view


def add_engines(folder: Path, manifest: Manifest, library: bytes = b"") -> Manifest:
    """Give a bundle engine files that hold their stage's name, as the stand-in reads them, and perhaps a library."""
    files: dict[str, FileInfo] = dict(manifest.files)
    stages = []
    for stage in manifest.stages:
        (folder / f"{stage.name}.engine").write_bytes(stage.name.encode() + library)
        files[f"{stage.name}.engine"] = file_info(folder / f"{stage.name}.engine")
        stages.append(msgspec.structs.replace(stage, engine=f"{stage.name}.engine", activation_bytes=1 << 20))
    tools = {**manifest.tools, "tensorrt-rtx": tensorrt_rtx.__version__}
    gpu = msgspec.structs.replace(manifest.gpu, flavour="tensorrt_rtx")
    embedded = hashlib.sha256(library).hexdigest() if library else None
    changed = {"files": files, "tools": tools, "gpu": gpu, "embedded_library": embedded}
    made = msgspec.structs.replace(manifest, stages=tuple(stages), **changed)
    write_manifest(folder, made)
    return made


class Cache:
    """A runtime cache whose content is the shapes seen; it takes back only what starts with its own version."""

    version = b"cache 1\n"

    def __init__(self) -> None:
        self.shapes: set[bytes] = set()

    def deserialize(self, blob: bytes) -> bool:
        if not bytes(blob).startswith(self.version):
            return False
        self.shapes = set(bytes(blob).removeprefix(self.version).split())
        return True

    def serialize(self) -> bytes:
        return self.version + b" ".join(sorted(self.shapes))


class Context:
    def __init__(self, trt: StandIn, stage: StageEntry, config: Any) -> None:
        assert config.strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        assert config.cuda_graph_strategy == tensorrt_rtx.CudaGraphStrategy.DISABLED
        self.trt, self.stage, self.cache = trt, stage, config.cache
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        dims = {tensor.name: tensor.dims for tensor in self.stage.inputs}[name]
        values = [n // split_dim(dim)[0] for n, dim in zip(shape, dims, strict=True) if isinstance(dim, str)]
        self.shapes[name] = shape
        return all(self.stage.profile.min <= value <= self.stage.profile.max for value in values)

    def update_device_memory_size_for_shapes(self) -> int:
        self.memory = (0, 0)
        return self._needed()

    def _needed(self) -> int:
        return {"embed": 100, "block": 300, "head": 200}.get(self.stage.name, 500) * prod(self._sizes().values())

    def _sizes(self) -> dict[str, int]:
        """What the shapes make of the stage's symbols."""
        dims = {tensor.name: tensor.dims for tensor in self.stage.inputs}
        return {
            symbol: n // factor
            for name, shape in self.shapes.items()
            for n, dim in zip(shape, dims[name], strict=True)
            if isinstance(dim, str)
            for factor, symbol in [split_dim(dim)]
        }

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        known = {tensor.name for tensor in (*self.stage.inputs, *self.stage.outputs)}
        self.addresses[name] = address
        return name in known and address % 4 == 0

    def execute_async_v3(self, stream: int) -> bool:
        sizes, (address, size) = self._sizes(), self.memory
        if address == 0 or size < self._needed():
            return self.trt.fail("device memory is missing or too small")
        everything = {tensor.name for tensor in (*self.stage.inputs, *self.stage.outputs)}
        if set(self.addresses) != everything:
            return self.trt.fail(f"unbound: {sorted(everything - set(self.addresses))}")
        if self.trt.failing:
            return self.trt.fail("the stand-in was told to fail")
        self.cache.shapes.add(" ".join(map(str, sizes.values())).encode())
        self.trt.enqueue(stream, self._work(sizes))
        return True

    def _work(self, sizes: dict[str, int]) -> Any:
        addresses, stage = dict(self.addresses), self.stage
        function = stage_functions(self.trt.manifest)[stage.name]

        def view(tensor: TensorInfo) -> torch.Tensor:
            return self.trt.view(addresses[tensor.name], shape_of(tensor.dims, sizes), tensor.dtype)

        def work() -> None:
            taken = {tensor.name: view(tensor) for tensor in stage.inputs}
            given = {name: view(tensor) for name, tensor in stage.gives.items()}
            with torch.no_grad():
                run_stage(stage, function, taken, given)

        return work


class Config:
    strategy: Any = None
    cuda_graph_strategy: Any = None

    def __init__(self) -> None:
        self.cache = Cache()

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class StandIn:
    """``tensorrt_rtx`` but for Runtime; ``enqueue(stream, work)``, ``view(address, shape, dtype)`` are a device's."""

    def __init__(self, manifest: Manifest, enqueue: Any, view: Any) -> None:
        self.manifest, self.enqueue, self.view = manifest, enqueue, view
        self.failing = False
        self.lacking: str | None = None
        self.runtimes: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)

    def fail(self, why: str) -> bool:
        self.logger.log(tensorrt_rtx.ILogger.INFO, "chatter")
        self.logger.log(tensorrt_rtx.ILogger.ERROR, why)
        return False

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        runtime = SimpleNamespace(engine_host_code_allowed=False, libraries=0)
        self.runtimes.append(runtime)

        def deserialize(data: bytes) -> Any:
            name, *library = data.split(b"\x7f", 1)
            if library:
                assert runtime.engine_host_code_allowed
                runtime.libraries += 1
            stage = self.manifest.stage(name.decode())
            names = [t.name for t in (*stage.inputs, *stage.outputs) if t.name != self.lacking]
            return SimpleNamespace(
                num_io_tensors=len(names),
                get_tensor_name=names.__getitem__,
                create_runtime_config=Config,
                create_execution_context=lambda config: Context(self, stage, config),
            )

        runtime.deserialize_cuda_engine = deserialize
        return runtime


def cuda_view(address: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A torch tensor over device memory."""
    count = int(np.prod(shape)) * DTYPES[dtype].bytes
    interface = {"shape": (count,), "typestr": "|u1", "data": (address, False), "version": 3}
    raw = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
    return raw.view(torch_dtype(dtype)).view(shape)
