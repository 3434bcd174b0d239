"""The torch backend's text encoder and VAE: the functions that were traced, on torch tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from exporter.components import component_stages
from exporter.models import ModelSpec, model_named
from exporter.stage_spec import StageSpec
from exporter.stages import BlockOptions
from exporter.torch_backend import TorchDevice, _view, sm_of
from exporter.torch_memory import PeakBytes
from plugins.torch_op import torch_dtype
from runtime.backend import Device, DeviceTensor
from runtime.bundle import Manifest
from runtime.dims import shape_of
from runtime.media.stages import Sizes


class TorchRunner:
    """A runner (see ``runtime.media.runner``) whose memory is torch's."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        model = model_named(manifest.model.name)
        self._torch = TorchDevice(device)
        self.device: Device = self._torch
        self._stages: dict[str, StageSpec] = {
            stage.name: stage
            for component in ("text", "vae")
            for stage in component_stages(model, component, BlockOptions(), manifest.text_linear)
        }
        self._sm = sm_of(device) if device.type == "cuda" else None
        self._peaks: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        """The peak of torch's allocations, followed on meta tensors; workspace of cuDNN is not in it."""
        key = stage, tuple(sorted(sizes.items()))
        if key not in self._peaks:
            self._peaks[key] = stage_peak(self._stages[stage], sizes, self._sm)
        return self._peaks[key]

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        """Nothing to do: torch allocates as it goes."""

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        spec = self._stages[stage]
        weights = {name: _view(inputs[name]) for name in spec.weights}
        with torch.no_grad(), self._torch._on("compute"):
            given = spec.function(*(_view(inputs[name]) for name in spec.inputs), weights)
            values = given if isinstance(given, tuple) else (given,)
            for name, value in zip(spec.outputs, values, strict=True):
                _view(outputs[name]).copy_(value)

    def close(self) -> None:
        self.device.close()


def _meta_arguments(stage: StageSpec, sizes: Sizes) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """A stage's inputs, and its weights by name, with nothing in them."""
    inputs = [
        torch.empty(shape_of(spec.dims, sizes), dtype=torch_dtype(spec.dtype), device="meta")
        for spec in stage.inputs.values()
    ]
    weights = {
        name: torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device="meta")
        for name, spec in stage.weights.items()
    }
    return inputs, weights


def stage_peak(stage: StageSpec, sizes: Sizes, sm: int | None = None) -> int:
    """Bytes a stage allocates at its peak under torch, besides inputs and weights. ``sm`` None: no kernels, the CPU."""
    inputs, weights = _meta_arguments(stage, sizes)
    with torch.no_grad(), PeakBytes([*inputs, *weights.values()], sm) as followed:
        stage.function(*inputs, weights)
    return int(followed.peak)


def decode_operations(model: ModelSpec, shape: tuple[int, int, int]) -> int:
    """Multiplications and additions of decoding latents of (T, H, W), counted by torch on meta tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    count, height, width = shape
    times = {"decode_latent": count, "decode_first": 1, "decode_next": count - 1}
    total = 0
    for stage in component_stages(model, "vae", BlockOptions()):
        if times.get(stage.name):
            inputs, weights = _meta_arguments(stage, {"H": height, "W": width})
            with torch.no_grad(), FlopCounterMode(display=False) as counted:
                stage.function(*inputs, weights)
            total += times[stage.name] * counted.get_total_flops()
    return total


def open_runner(manifest: Manifest) -> TorchRunner:
    """On the current CUDA device, or on the CPU where there is none."""
    cuda = torch.cuda.is_available()
    return TorchRunner(manifest, torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))
