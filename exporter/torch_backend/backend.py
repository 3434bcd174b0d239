"""The torch backend: the functions that were traced, on torch tensors. Compiled plans on CUDA, references on the CPU.

For verification, and for GPUs where the bundle's engines cannot run. It reads weights from the bundle and nothing else:
kernels are compiled for the GPU that is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import stage_function
from exporter.torch_backend.device import TorchDevice, _view
from exporter.torch_backend.memory import UNSPLIT, stage_bytes
from plugins.torch_op import device_sm
from runtime.backends.kind import BackendKind
from runtime.backends.protocol import DeviceTensor
from runtime.backends.runner import Activations, Runner
from runtime.bundle import Manifest
from runtime.checks import FINE
from runtime.layout import activation_names
from runtime.report import Report

#: cuBLAS takes 32 MiB for itself on Hopper, and cuBLASLt as much again.
CUBLAS_BYTES = 2 * 32 * 2**20


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
    from exporter.torch_backend.media import open_runner

    return open_runner(manifest)


def _media_bytes(manifest: Manifest) -> Activations:
    from exporter.torch_backend.media import open_runner

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
