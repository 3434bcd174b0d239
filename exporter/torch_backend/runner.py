"""The torch runner: the functions that were traced, on torch tensors. Compiled plans on CUDA, references on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exporter.networks.dit.options import BlockOptions
from exporter.networks.tiny.channels_last import ChannelsLast as TinyChannelsLast
from exporter.networks.vae.channels_last import ChannelsLast
from exporter.networks.vae.hopper_tape import tape_for
from exporter.networks.vae.layers import Tape
from exporter.torch_backend.declared import bundle_stages
from exporter.torch_backend.device import TorchDevice, tensor_of
from exporter.torch_backend.memory import UNSPLIT, PeakBytes, meta_tensors
from exporter.torch_backend.peaks import kept_peak
from plugins.torch_op import device_sm
from runtime.backends.protocol import DeviceTensor
from runtime.bundle import Manifest, StageEntry
from runtime.dims import Sizes
from runtime.media.vae.tensors import CACHE
from runtime.report import Report, Silent

#: cuBLAS takes 32 MiB for itself on Hopper, and cuBLASLt as much again.
CUBLAS_BYTES = 2 * 32 * 2**20

Function = Callable[..., Any]


class TorchRunner:
    """A runner (see ``runtime.backends.protocol``) whose memory is torch's; results are copied to where they go."""

    def __init__(self, manifest: Manifest, device: torch.device, report: Report | None = None) -> None:
        self._manifest, self._report = manifest, report or Silent()
        self._functions = stage_functions(manifest)
        self._peaks: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
        self.device = TorchDevice(device)
        self._sm = device_sm(device) if self.device.cuda else None
        self.overhead_bytes = overhead_bytes(manifest, device)

    @property
    def channels_last(self) -> bool:
        """Whether the VAE's caches lie with their channels last, in memory of the manifest's shape."""
        return issubclass(tape_for(self._sm), ChannelsLast)

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        """The peak of torch's allocations, followed on meta tensors; workspace of cuDNN is not in it."""
        key = stage, tuple(sorted(sizes.items()))
        if key not in self._peaks:
            entry, function = self._manifest.stage(stage), self._functions[stage]

            def follow() -> int:
                compiled = "" if self._sm is None else " and compile its kernels"
                with self._report.stage(f"follow {stage}{compiled}, kept for the next start"):
                    return stage_peak(entry, function, sizes, self._sm)

            self._peaks[key] = kept_peak(self._manifest, entry, sizes, f"sm {self._sm}", follow)
        return self._peaks[key]

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        """Nothing to do: torch allocates as it goes."""

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        given = {name: tensor_of(tensor) for name, tensor in inputs.items()}
        wanted = {name: tensor_of(tensor) for name, tensor in outputs.items()}
        with torch.no_grad(), self.device.on("compute"):
            entry = self._manifest.stage(stage)
            run_stage(entry, self._functions[stage], given, wanted, tape_for(self._sm))

    def release(self) -> None:
        """Nothing to do, as in ``prepare``."""

    def close(self) -> None:
        """Nothing to do: functions hold no memory."""


def stage_functions(manifest: Manifest) -> dict[str, Function]:
    """The function of each of a bundle's stages. UserError where it takes other tensors than the manifest says."""
    facts = manifest.sampler
    options = BlockOptions(facts.attention, facts.topk_milli, facts.linear)
    return {name: stage.function for name, stage in bundle_stages(manifest, options).items()}


def overhead_bytes(manifest: Manifest, device: torch.device) -> int:
    """cuBLAS, and for each slot of weights and for the run's tensors what the allocator would not split off a block.

    The CPU has neither.
    """
    if device.type != "cuda":
        return 0
    return CUBLAS_BYTES + (len(manifest.model.experts) * (manifest.model.layers + 2) + 2) * UNSPLIT


def run_stage(
    stage: StageEntry,
    function: Function,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    tape: type[Tape] = Tape,
) -> None:
    """A stage's function on tensors by name, its weights among ``inputs``; results lie in ``outputs`` afterwards.

    ``tape``: the VAE's way, in whose order of memory the tiny decoder works too. What their caches' memory holds is in
    that order, first to last chunk.
    """
    weights = {tensor.name: inputs[tensor.name] for tensor in stage.weights}
    given = {tensor.name: inputs[tensor.name] for tensor in stage.activations}
    options: dict[str, Any] = {}
    if stage.component in ("vae", "tiny") and issubclass(tape, ChannelsLast):
        given = {name: _reordered(x) if name.startswith(CACHE) else _converted(x) for name, x in given.items()}
        outputs = {name: _reordered(x) if name.startswith(CACHE) else x for name, x in outputs.items()}
        into = {name.removeprefix(CACHE): x for name, x in outputs.items() if name.startswith(CACHE)}
        vae = stage.component == "vae"
        options = {"make_tape": partial(tape, into=into)} if vae else {"layers": TinyChannelsLast()}
    found = function(*given.values(), weights, **options)
    for name, value in zip(stage.gives, found if isinstance(found, tuple) else (found,), strict=True):
        if value is not outputs[name]:
            outputs[name].copy_(value)


def _reordered(x: Tensor) -> Tensor:
    """The same memory as a tensor of the same shape, channels last."""
    n, c, *rest = x.shape
    return x.view(n, *rest, c).movedim(-1, 1)


def _converted(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def stage_peak(stage: StageEntry, function: Function, sizes: Sizes, sm: int | None) -> int:
    """Bytes a stage allocates at its peak under torch, besides inputs, outputs and weights. ``sm`` None: the CPU."""
    inputs, outputs = meta_tensors(stage, sizes)
    with torch.no_grad(), PeakBytes([*inputs.values(), *outputs.values()], sm) as followed:
        run_stage(stage, function, inputs, outputs, tape_for(sm))
    return int(followed.peak)
