"""The torch backend by name, as the runtime finds it by entry point.

For verification, and for GPUs where the bundle's engines cannot run. It reads weights from the bundle and nothing else:
kernels are compiled for the GPU that is here.
"""

from __future__ import annotations

import torch

from exporter.torch_backend.runner import TorchRunner, overhead_bytes
from runtime.backends.kind import BackendKind
from runtime.bundle import Manifest
from runtime.report import Report


def _device_here() -> torch.device:
    """The current CUDA device, the CPU where there is none."""
    cuda = torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def _runner(manifest: Manifest, report: Report | None = None) -> TorchRunner:
    return TorchRunner(manifest, _device_here(), report)


TORCH = BackendKind(
    name="torch",
    check=lambda folder, manifest: None,
    files=lambda manifest, component: [],
    open=lambda folder, manifest, report: _runner(manifest, report),
    # A plan before anything is loaded is of what would run: the device here, whatever GPU the bundle is for.
    activations=lambda manifest: _runner(manifest).activation_bytes,
    overhead=lambda manifest: overhead_bytes(manifest, _device_here()),
    source="the peak of torch's allocations on the device here, followed through the stage on meta tensors; on a GPU "
    "with the plans' workspace",
    any_topk=True,
)
