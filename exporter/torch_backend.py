"""The torch backend: the functions that were traced, on torch tensors. Compiled plans on CUDA, references on the CPU.

For verification, and for GPUs where the bundle's engines cannot run. It reads weights from the bundle and nothing else:
kernels are compiled for the GPU that is here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import stage_function
from exporter.torch_memory import UNSPLIT, stage_bytes
from plugins.torch_op import device_sm, torch_dtype
from runtime.backends.kind import BackendKind
from runtime.backends.protocol import Bytes, DeviceTensor, Queue
from runtime.backends.runner import Activations, Runner
from runtime.bundle import Manifest
from runtime.checks import FINE
from runtime.layout import activation_names
from runtime.report import Report

#: cuBLAS takes 32 MiB for itself on Hopper, and cuBLASLt as much again.
CUBLAS_BYTES = 2 * 32 * 2**20


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
        with self._on("compute"):  # torch's allocator keeps a pool for each stream
            return TorchMemory(nbytes, self.device)

    def pinned(self, nbytes: int) -> TorchMemory:
        return TorchMemory(nbytes, torch.device("cpu"), pinned=self.cuda)

    def upload(self, target: Any, offset: int, source: Bytes, queue: Queue) -> None:
        with self._on(queue):
            place = target.tensor[offset : offset + source.nbytes]
            place.copy_(torch.from_numpy(source), non_blocking=True)

    def download(self, source: Any, offset: int, target: Bytes) -> None:
        with self._on("compute"):
            torch.from_numpy(target).copy_(source.tensor[offset : offset + target.nbytes])

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
    def _on(self, queue: Queue) -> Iterator[None]:
        if not self.cuda:
            yield
            return
        with torch.cuda.stream(self.streams[queue]):
            yield


class TorchBackend:
    """The stages of one bundle as torch functions; outputs are copied to where the pipeline wants them."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        self._manifest = manifest
        self.device = TorchDevice(device)
        options = options_of(manifest)
        self._functions = {stage: stage_function(stage, options) for stage in ("embed", "block", "head")}
        self.overhead_bytes = _overhead(manifest, device)
        self._peaks: dict[tuple[str, int], int] = {}

    def activation_bytes(self, stage: str, tokens: int) -> int:
        if (stage, tokens) not in self._peaks:
            self._peaks[stage, tokens] = _stage_bytes(self._manifest, stage, tokens, self.device.device)
        return self._peaks[stage, tokens]

    def prepare(self, tokens: int) -> None:
        """Nothing to do: torch allocates as it goes."""

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        names = activation_names(self._manifest, stage)
        weights = {name: _view(tensor) for name, tensor in inputs.items() if name not in names}
        with torch.no_grad(), self.device._on("compute"):
            given = self._functions[stage](*(_view(inputs[name]) for name in names), weights)
            for tensor, value in zip(outputs.values(), given if isinstance(given, tuple) else (given,), strict=True):
                _view(tensor).copy_(value)

    def release(self) -> None:
        """Nothing to do, as in ``prepare``."""

    def close(self) -> None:
        """Nothing to do: functions hold no memory."""


def _view(tensor: DeviceTensor) -> torch.Tensor:
    place = tensor.place
    memory: Any = tensor.memory
    raw = memory.tensor[place.offset : place.offset + place.nbytes]
    return raw.view(torch_dtype(place.dtype)).view(place.shape)


def options_of(manifest: Manifest) -> BlockOptions:
    """How the bundle's blocks compute."""
    facts = manifest.sampler
    return BlockOptions(facts.attention, facts.topk_milli, facts.linear)


def _device_here() -> torch.device:
    """The current CUDA device, the CPU where there is none."""
    cuda = torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def _overhead(manifest: Manifest, device: torch.device) -> int:
    """cuBLAS, and for each slot of weights and for the run's tensors what the allocator would not split off a block.

    The CPU has neither.
    """
    if device.type != "cuda":
        return 0
    return CUBLAS_BYTES + (len(manifest.model.experts) * (manifest.model.layers + 2) + 2) * UNSPLIT


def _stage_bytes(manifest: Manifest, stage: str, tokens: int, device: torch.device) -> int:
    sm = device_sm(device) if device.type == "cuda" else None
    return stage_bytes(manifest, stage, tokens, options_of(manifest), sm)


def _open(folder: Path, manifest: Manifest, report: Report) -> TorchBackend:
    return TorchBackend(manifest, _device_here())


def _open_media(folder: Path, manifest: Manifest, report: Report) -> Runner:
    from exporter.torch_media import open_runner

    return open_runner(manifest)


def _media_bytes(manifest: Manifest) -> Activations:
    from exporter.torch_media import open_runner

    return open_runner(manifest).activation_bytes


TORCH = BackendKind(
    name="torch",
    check=lambda folder, manifest: FINE,
    files=lambda manifest: [],
    open=_open,
    # A plan before anything is loaded is of what would run: the device here, whatever GPU the bundle is for.
    activation_bytes=lambda manifest, stage, tokens: _stage_bytes(manifest, stage, tokens, _device_here()),
    overhead=lambda manifest: _overhead(manifest, _device_here()),
    source="the peak of torch's allocations on the device here, followed through the stage on meta tensors; on a GPU "
    "with the plans' workspace",
    open_media=_open_media,
    media_bytes=_media_bytes,
)
