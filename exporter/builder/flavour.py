"""The two flavours of TensorRT behind one module: which to import, where it can build, and the few differences."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from exporter.gpus import GpuSpec
from plugins.errors import UserError
from plugins.sms import capability
from runtime.backends.cuda_device import compute_capability


def check_buildable(gpu: GpuSpec) -> None:
    """Raise UserError where engines for this GPU cannot be built here: said before any work is done."""
    if gpu.flavour == "tensorrt_rtx":
        return
    remedy = (
        f"on a machine with a {gpu.product}: pip install 'turbotrt[export,tensorrt]' and export there; "
        "or add --onnx-only for the ONNX files, launch plans and weights"
    )
    wanted = f"the full TensorRT package and a {gpu.product} (compute capability {gpu.compute_capability})"
    try:
        importlib.import_module("tensorrt")
    except ImportError:
        raise UserError(
            f"Engines for {gpu.name} cannot be built here.", expected=wanted, got="no tensorrt package", remedy=remedy
        ) from None
    present = compute_capability()
    if present != gpu.sm:
        got = "no CUDA GPU" if present is None else f"a GPU of compute capability {capability(present)}"
        raise UserError(f"Engines for {gpu.name} cannot be built here.", expected=wanted, got=got, remedy=remedy)


def load(flavour: str) -> Any:
    """The TensorRT module of that flavour."""
    return importlib.import_module(flavour)


def library_folder(flavour: str) -> Path | None:
    """Where the flavour's shared library lies, if its parser needs help to find it (see build)."""
    if flavour != "tensorrt_rtx":
        return None
    libs = importlib.import_module("tensorrt_rtx_libs")
    return Path(next(iter(libs.__path__)))


def target(trt: Any, config: Any, gpu: GpuSpec) -> None:
    """Set the GPU an engine is built for; TensorRT proper always builds for the one present."""
    if gpu.flavour == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{gpu.sm}"), 0)
