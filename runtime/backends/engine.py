"""One stage's TensorRT engine: deserialized, with an execution context on memory that we give it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.atomic import write_atomic
from runtime.backends.loader import EngineLoader
from runtime.backends.protocol import BackendError, DeviceTensor
from runtime.bundle import OUTPUT_SUFFIX, StageEntry
from runtime.dims import Sizes, shape_of
from runtime.input_files import read_input

_MAX_CACHE = 1 << 30  # bytes of compiled kernels; those of an engine take some megabytes


class Engine:
    """Load ``path`` for a stage. Raises BackendError with the log's end.

    ``cache`` is the file for what RTX compiles on first use; None where the flavour has no such thing.
    """

    def __init__(
        self, trt: Any, loader: EngineLoader, log: Any, path: Path, stage: StageEntry, cache: Path | None
    ) -> None:
        self._stage, self._log, self._path = stage, log, path
        self._engine = loader.load(path)
        self._check_tensors()
        self._cache = None if cache is None else RuntimeCache(cache)
        self._context = self._make_context(trt)
        if self._context is None:
            raise log.error(f"{path.name} gave no execution context.")

    def memory_for(self, sizes: Sizes) -> int:
        """Set the shapes for these sizes; bytes that the context needs. Memory given before is not valid after this."""
        for tensor in self._stage.inputs:
            if any(isinstance(dim, str) for dim in tensor.dims):
                shape = shape_of(tensor.dims, sizes)
                if not self._context.set_input_shape(tensor.name, shape):
                    raise self._log.error(f"{self._path.name} refuses {tensor.name} of shape {shape}.")
        return int(self._context.update_device_memory_size_for_shapes())

    def use_memory(self, address: int, nbytes: int) -> None:
        """Let the context run on this memory."""
        self._context.set_device_memory(address, nbytes)

    def run(self, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor], stream: int) -> None:
        """Enqueue on a stream. Raises BackendError."""
        bound = {**inputs, **{name + OUTPUT_SUFFIX: tensor for name, tensor in outputs.items()}}
        for name, tensor in bound.items():
            memory: Any = tensor.memory
            if not self._context.set_tensor_address(name, memory.address + tensor.place.offset):
                raise self._log.error(f"{self._path.name} has no tensor {name}.")
        if not self._context.execute_async_v3(stream):
            raise self._log.error(f"{self._path.name} could not run.")

    def save_cache(self) -> str | None:
        """Keep on disk what was compiled since; what went wrong, or None."""
        return None if self._cache is None else self._cache.save()

    def close(self) -> None:
        """Drop context and engine."""
        self._context = self._engine = self._cache = None

    def _check_tensors(self) -> None:
        have = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        want = {tensor.name for tensor in (*self._stage.inputs, *self._stage.outputs)}
        if have != want:
            raise BackendError(
                f"{self._path.name} is not the engine of the manifest: its tensors are others.",
                expected=", ".join(sorted(want - have)) or "no more than the manifest's",
                got=", ".join(sorted(have - want)) or "fewer",
                remedy="export the bundle again",
            )

    def _make_context(self, trt: Any) -> Any:
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            return self._engine.create_execution_context(managed)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        # Weights are bound anew for every layer, which a captured graph would not see.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._cache.attach(config)
        return self._engine.create_execution_context(config)


class RuntimeCache:
    """RTX's compiled kernels of one engine in a file. TensorRT itself ignores one of another version, GPU or driver."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None
        self._saved = b""
        self.used = False

    def attach(self, config: Any) -> None:
        """Give the configuration a cache, with the file's content where that is of use."""
        self._cache = config.create_runtime_cache()
        with suppress(UserError):  # there is none, or none that can be read
            data = read_input(self._path, _MAX_CACHE, "a cache of kernels")
            self.used = bool(self._cache.deserialize(data))
            self._saved = data if self.used else b""
        config.set_runtime_cache(self._cache)

    def save(self) -> str | None:
        """Write the file if there is anything new. What went wrong, or None."""
        data = bytes(self._cache.serialize())
        if data == self._saved:
            return None
        try:
            write_atomic(self._path, data)
        except OSError as error:
            return f"{self._path.name} could not be written ({error.strerror}): the next start compiles again"
        self._saved = data
        return None
