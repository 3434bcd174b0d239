"""The TensorRT backend: a bundle's engines, of the flavour its manifest names, on one GPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from plugins.dtypes import DTYPES
from plugins.errors import UserError
from runtime.backends.cuda_device import CudaDevice, CudaMemory, compute_capability
from runtime.backends.engine import Engine
from runtime.backends.kind import BackendKind
from runtime.backends.loader import EngineLoader, make_logger
from runtime.backends.protocol import DeviceTensor
from runtime.bundle import Component, Manifest, StageEntry
from runtime.checks import check_engines, check_gpu, check_plugins
from runtime.dims import Sizes
from runtime.report import Report
from runtime.versions import installed_versions

PACKAGES = ("tensorrt-rtx", "tensorrt")
_UNSCALED = 1 << 20  # what of a stage's activation memory may not grow with its sizes, at least


class TensorrtRunner:
    """Engines with their contexts, each loaded when first used. Activation memory is one allocation for all of them.

    Stages take turns in it; it grows as they need, until ``release``.
    """

    def __init__(self, trt: Any, folder: Path, manifest: Manifest, device: CudaDevice, report: Report) -> None:
        self.device, self._report = device, report
        self._trt, self._folder, self._manifest = trt, folder, manifest
        self._log = make_logger(trt)
        self._loader = EngineLoader(trt, self._log, manifest, report.note)
        self.overhead_bytes = engine_bytes(manifest)
        self._engines: dict[str, Engine] = {}
        self._needs: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
        self._prepared: dict[str, Sizes] = {}
        self._memory: CudaMemory | None = None

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        """TensorRT's own figure for these sizes; where it was not known, the stage must be prepared again."""
        key = stage, tuple(sorted(sizes.items()))
        if key not in self._needs:
            self._prepared.pop(stage, None)
            self._needs[key] = self._engine(stage).memory_for(sizes)
        return self._needs[key]

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        wanted = {stage: given for stage, given in sizes.items() if self._prepared.get(stage) != given}
        if not wanted:
            return
        memory, changed = self._room_for(max(self._engine(stage).memory_for(given) for stage, given in wanted.items()))
        self._prepared |= wanted
        for stage in self._prepared if changed else wanted:
            self._engines[stage].use_memory(memory.address, memory.nbytes)

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        if stage not in self._prepared:
            raise ValueError(f"{stage} runs without being prepared")
        self._engines[stage].run(inputs, outputs, self.device.stream)

    def release(self) -> None:
        """Free activation memory, and keep what RTX compiled meanwhile."""
        self._prepared.clear()
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        for engine in self._engines.values():
            if problem := engine.save_cache():
                self._report.note(problem)

    def close(self) -> None:
        self.release()
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _room_for(self, nbytes: int) -> tuple[CudaMemory, bool]:
        """Activation memory of at least so many bytes; whether it is another allocation than before."""
        if self._memory is not None and self._memory.nbytes >= nbytes:
            return self._memory, False
        self.device.finish()
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        self._memory = self.device.allocate(max(1, nbytes))
        return self._memory, True

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            stage = self._manifest.stage(name)
            if stage.engine is None:
                raise UserError(
                    f"The bundle has no engine of {name}: it was exported with --onnx-only.",
                    remedy="export without it, or run with --backend torch",
                )
            path = self._folder / stage.engine
            cache = path.with_suffix(".jitcache") if self._manifest.gpu.flavour == "tensorrt_rtx" else None
            with self._report.stage(f"load {path.name}"):
                self._engines[name] = Engine(self._trt, self._loader, self._log, path, stage, cache)
        return self._engines[name]


def engine_bytes(manifest: Manifest) -> int:
    """The sizes of the DiT's engines: loaded, their kernels lie in device memory."""
    named = (stage.engine for stage in manifest.stages_of("dit"))
    return sum(manifest.files[name].bytes for name in named if name is not None)


def planned_bytes(manifest: Manifest, stage: str, sizes: Sizes) -> int:
    """Activation memory of a stage by the builder's figure, which is for the profile's maximum.

    It is all but linear in the product of the symbols, and less where it grows faster, as attention's does in the text
    encoder. What does not grow is of the size of inputs that do not, the text's, and added whole. Raises UserError for
    a bundle without engines.
    """
    entry = manifest.stage(stage)
    most = entry.activation_bytes
    if most is None:
        raise UserError(
            "The bundle holds no figure for its engines' memory.",
            expected="a bundle with engines",
            remedy="--backend torch plans without engines",
        )
    share, whole = prod(sizes.values()), int(entry.profile.max ** len(sizes))
    return min(most, -(-most * share // whole) + max(_UNSCALED, 8 * _fixed_bytes(entry)))


def _fixed_bytes(stage: StageEntry) -> int:
    """Bytes of the largest input that is no weight and has one size."""
    fixed = [t for t in stage.activations if all(isinstance(dim, int) for dim in t.dims)]
    return max((prod(map(int, t.dims)) * DTYPES[t.dtype].bytes for t in fixed), default=0)


def installed() -> dict[str, str]:
    """The TensorRT packages here and their versions."""
    return installed_versions(PACKAGES)


def _check(folder: Path, manifest: Manifest) -> str | None:
    return (
        check_engines(folder, manifest, installed())
        or check_plugins(folder, manifest)
        or check_gpu(manifest, compute_capability())
    )


def _files(manifest: Manifest, component: Component) -> list[str]:
    return [stage.engine for stage in manifest.stages_of(component) if stage.engine is not None]


def _open(folder: Path, manifest: Manifest, report: Report) -> TensorrtRunner:
    trt, device = importlib.import_module(manifest.gpu.flavour), CudaDevice()
    try:
        with device.current():
            return TensorrtRunner(trt, folder, manifest, device, report)
    except BaseException:
        device.close()
        raise


TENSORRT = BackendKind(
    name="tensorrt",
    check=_check,
    files=_files,
    open=_open,
    activations=lambda manifest: partial(planned_bytes, manifest),
    overhead=engine_bytes,
    source="the builder's own figure for activation memory; it has not been measured on a GPU",
)
