"""The TensorRT backend: a bundle's three engines, of the flavour its manifest names, on one GPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from plugins.registry import OPS
from plugins.tensorrt_plugin import register
from runtime.backends.cuda_device import CudaDevice, compute_capability
from runtime.backends.engine import Engine, make_logger
from runtime.backends.kind import BackendKind
from runtime.backends.protocol import DeviceTensor, Memory
from runtime.backends.runner import Runner
from runtime.backends.tensorrt_runner import TensorrtRunner
from runtime.bundle import Manifest
from runtime.checks import Verdict, check_engines, check_gpu, check_plugins
from runtime.layout import stage_files
from runtime.media_layout import Sizes, media_stage
from runtime.report import Report
from runtime.versions import installed_versions

PACKAGES = ("tensorrt-rtx", "tensorrt")
_UNSCALED = 1 << 20  # what of a stage's activation memory may not grow with its sizes


class TensorrtBackend:
    """Engines with their contexts; activation memory is one allocation that the stages take turns in."""

    def __init__(self, trt: Any, folder: Path, manifest: Manifest, device: Any, report: Report) -> None:
        self.device, self._report = device, report
        self._log = make_logger(trt)
        register(trt, OPS)  # an engine that holds our plugins cannot be deserialized without
        runtime = trt.Runtime(self._log)
        caching = manifest.gpu.flavour == "tensorrt_rtx"
        self._engines: dict[str, Engine] = {}
        with report.stage("load engines") as update:
            for stage in manifest.stages:
                path = folder / str(stage.engine)
                cache = path.with_suffix(".jitcache") if caching else None
                self._engines[stage.name] = Engine(trt, runtime, self._log, path, stage, cache)
                update(len(self._engines), len(manifest.stages))
        self.overhead_bytes = engine_bytes(manifest)
        self._sizes: dict[tuple[str, int], int] = {}
        self._memory: Memory | None = None

    def activation_bytes(self, stage: str, tokens: int) -> int:
        """TensorRT's own figure for these shapes."""
        if (stage, tokens) not in self._sizes:
            self._sizes[stage, tokens] = self._engines[stage].activation_bytes(tokens)
        return self._sizes[stage, tokens]

    def prepare(self, tokens: int) -> None:
        needs = {name: engine.activation_bytes(tokens) for name, engine in self._engines.items()}
        memory: Any = self.device.allocate(max(1, *needs.values()))
        self._memory = memory
        for engine in self._engines.values():
            engine.use_memory(memory.address, memory.nbytes)

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        self._engines[stage].run(inputs, outputs, self.device.stream)

    def release(self) -> None:
        """Free activation memory, and keep what RTX compiled meanwhile."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        for engine in self._engines.values():
            if problem := engine.save_cache():
                self._report.note(problem)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


def engine_bytes(manifest: Manifest) -> int:
    """The engines' sizes: loaded, their kernels lie in device memory."""
    return sum(manifest.files[stage.engine].bytes for stage in manifest.stages if stage.engine is not None)


def planned_bytes(manifest: Manifest, stage: str, tokens: int) -> int:
    """Activation memory at L by the builder's figure, which is for the profile's maximum and all but linear in L.

    What does not grow with L is of the text's size, and added whole. Raises UserError for a bundle without engines.
    """
    entry = stage_files(manifest, stage)
    most = _builders_figure(entry.activation_bytes)
    text = 16 * manifest.model.text_length * manifest.model.dim
    return min(most, -(-most * tokens // entry.profile.max) + text)


def planned_media_bytes(manifest: Manifest, stage: str, sizes: Sizes) -> int:
    """Activation memory of a stage of text encoder or VAE, likewise; attention's grows faster, so that this is more."""
    entry = media_stage(manifest, stage)
    most = _builders_figure(entry.activation_bytes)
    share, whole = prod(sizes.values()), int(entry.profile.max ** len(sizes))
    return min(most, -(-most * share // whole) + _UNSCALED)


def _builders_figure(found: int | None) -> int:
    if found is None:
        raise UserError(
            "The bundle holds no figure for its engines' memory.",
            expected="a bundle with engines",
            remedy="--backend torch plans without engines",
        )
    return found


def installed() -> dict[str, str]:
    """The TensorRT packages here and their versions."""
    return installed_versions(PACKAGES)


def _check(folder: Path, manifest: Manifest) -> Verdict:
    for verdict in (check_engines(folder, manifest, installed()), check_plugins(folder, manifest)):
        if not verdict[0]:
            return verdict
    return check_gpu(manifest, compute_capability())


def _open(folder: Path, manifest: Manifest, report: Report) -> TensorrtBackend:
    trt, device = importlib.import_module(manifest.gpu.flavour), CudaDevice()
    try:
        with device.current():
            return TensorrtBackend(trt, folder, manifest, device, report)
    except BaseException:
        device.close()
        raise


def _open_media(folder: Path, manifest: Manifest, report: Report) -> Runner:
    trt, device = importlib.import_module(manifest.gpu.flavour), CudaDevice()
    return TensorrtRunner(trt, folder, manifest, device)


TENSORRT = BackendKind(
    name="tensorrt",
    check=_check,
    files=lambda manifest: [str(stage.engine) for stage in manifest.stages],
    open=_open,
    activation_bytes=planned_bytes,
    overhead=engine_bytes,
    source="the builder's own figure for activation memory; it has not been measured on a GPU",
    open_media=_open_media,
    media_bytes=lambda manifest: partial(planned_media_bytes, manifest),
)
