"""The torch backend's text encoder and VAE: the functions that were traced, on torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exporter.models import ModelSpec, model_named
from exporter.networks.components import component_stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.stage_spec import StageSpec
from exporter.networks.vae.channels_last import ChannelsLast
from exporter.torch_backend.device import TorchDevice, _view
from exporter.torch_backend.memory import PeakBytes
from plugins.torch_dtypes import torch_dtype
from plugins.torch_op import device_sm
from runtime.backends.protocol import Device, DeviceTensor
from runtime.bundle import Manifest
from runtime.dims import shape_of
from runtime.media_layout import CACHE, Sizes


class TorchRunner:
    """A runner (see ``runtime.backends.runner``) whose memory is torch's."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        model = model_named(manifest.model.name)
        self._torch = TorchDevice(device)
        self.device: Device = self._torch
        self._stages: dict[str, StageSpec] = {
            stage.name: stage
            for component in ("text", "vae")
            for stage in component_stages(model, component, BlockOptions(), manifest.text_linear)
        }
        self.channels_last = device.type == "cuda"
        self._sm = device_sm(device) if device.type == "cuda" else None
        self._peaks: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        """The peak of torch's allocations, followed on meta tensors; workspace of cuDNN is not in it."""
        key = stage, tuple(sorted(sizes.items()))
        if key not in self._peaks:
            stage_spec = self._stages[stage]
            self._peaks[key] = stage_peak(stage_spec, sizes, self._sm, channels_last=self.channels_last)
        return self._peaks[key]

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        """Nothing to do: torch allocates as it goes."""

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        spec = self._stages[stage]
        given = {name: _view(tensor) for name, tensor in inputs.items()}
        wanted = {name: _view(tensor) for name, tensor in outputs.items()}
        with torch.no_grad(), self._torch._on("compute"):
            run_stage(spec, given, wanted, channels_last=self.channels_last)

    def close(self) -> None:
        self.device.close()


def run_stage(
    stage: StageSpec, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], *, channels_last: bool
) -> None:
    """A stage's function on tensors by name, its weights among ``inputs``; results lie in ``outputs`` afterwards.

    ``channels_last``: the VAE's way on CUDA. What its caches' memory holds is then in that order, first to last chunk.
    """
    weights = {name: inputs[name] for name in stage.weights}
    given = {name: inputs[name] for name in stage.inputs}
    options: dict[str, Any] = {}
    if channels_last and stage.component == "vae":
        given = {name: _reordered(x) if name.startswith(CACHE) else _converted(x) for name, x in given.items()}
        outputs = {name: _reordered(x) if name.startswith(CACHE) else x for name, x in outputs.items()}
        into = {name.removeprefix(CACHE): x for name, x in outputs.items() if name.startswith(CACHE)}
        options["make_tape"] = partial(ChannelsLast, into=into)
    found = stage.function(*given.values(), weights, **options)
    for name, value in zip(stage.outputs, found if isinstance(found, tuple) else (found,), strict=True):
        if value is not outputs[name]:
            outputs[name].copy_(value)


def _reordered(x: Tensor) -> Tensor:
    """The same memory as a tensor of the same shape, channels last."""
    n, c, *rest = x.shape
    return x.view(n, *rest, c).permute(0, 4, 1, 2, 3)


def _converted(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _meta_inputs(stage: StageSpec, sizes: Sizes) -> dict[str, Tensor]:
    """A stage's inputs and weights by name, with nothing in them."""

    def empty(dims: tuple[int | str, ...], dtype: str) -> Tensor:
        return torch.empty(shape_of(dims, sizes), dtype=torch_dtype(dtype), device="meta")

    return {
        **{name: empty(spec.dims, spec.dtype) for name, spec in stage.inputs.items()},
        **{name: empty(spec.shape, spec.dtype) for name, spec in stage.weights.items()},
    }


def stage_peak(stage: StageSpec, sizes: Sizes, sm: int | None, *, channels_last: bool) -> int:
    """Bytes a stage allocates at its peak under torch, besides inputs, outputs and weights. ``sm`` None: the CPU."""
    inputs = _meta_inputs(stage, sizes)
    dims = stage.output_dims or (next(iter(stage.inputs.values())).dims,)
    # The caches' dtype; the others' is not asked about: they are no allocations of the stage.
    outputs = {
        name: torch.empty(shape_of(dim, sizes), dtype=torch.bfloat16, device="meta")
        for name, dim in zip(stage.outputs, dims, strict=True)
    }
    with torch.no_grad(), PeakBytes([*inputs.values(), *outputs.values()], sm) as followed:
        run_stage(stage, inputs, outputs, channels_last=channels_last)
    return int(followed.peak)


def decode_operations(model: ModelSpec, shape: tuple[int, int, int]) -> int:
    """Multiplications and additions of decoding latents of (T, H, W), counted by torch on meta tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    count, height, width = shape
    times = {"decode_latent": count, "decode_first": 1, "decode_next": count - 1}
    total = 0
    for stage in component_stages(model, "vae", BlockOptions()):
        if times.get(stage.name):
            given = _meta_inputs(stage, {"H": height, "W": width})
            with torch.no_grad(), FlopCounterMode(display=False) as counted:
                stage.function(*(given[name] for name in stage.inputs), {name: given[name] for name in stage.weights})
            total += times[stage.name] * counted.get_total_flops()
    return total


def open_runner(manifest: Manifest) -> TorchRunner:
    """On the current CUDA device, or on the CPU where there is none."""
    cuda = torch.cuda.is_available()
    return TorchRunner(manifest, torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))
