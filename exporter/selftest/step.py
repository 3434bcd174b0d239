"""A step: the smallest thing that can fail by itself. What a case consists of, and what a step says of its finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from exporter.gpus import GpuSpec, gpu_named
from exporter.selftest.rows import Case, Machine
from exporter.selftest.variants import VARIANTS, Variant
from plugins.errors import UserError
from runtime.backends.kind import BackendKind


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What all cases have in common: the bundles' folder, the GPU's name in the table, what is only done once.

    ``onnx_only``: there is no TensorRT for this GPU here, so no engines. ``found``: bundles are taken as they are.
    """

    folder: str
    gpu: str
    onnx_only: bool = False
    found: bool = False
    quick: bool = False

    @property
    def target(self) -> GpuSpec:
        return gpu_named(self.gpu)

    def bundle(self, variant: Variant) -> Path:
        """Where a variant's bundle lies."""
        return self.out(variant) / f"{variant.model.name}-{self.gpu}"

    def out(self, variant: Variant) -> Path:
        return Path(self.folder) / variant.name


@dataclass(frozen=True)
class Finding:
    """What a step found: it passes while ``error`` is within ``bound``; without either, by having been come to."""

    name: str
    stage: str | None = None
    op: str | None = None
    tensor: str | None = None
    error: float | None = None
    bound: float | None = None
    figures: Mapping[str, float | None] = field(default_factory=dict)
    detail: str = ""
    skipped: bool = False
    machine: Machine | None = None


@dataclass(frozen=True)
class Step:
    """A name, what is done under it, and the stage that it is about."""

    name: str
    run: Callable[[], Iterable[Finding]]
    stage: str | None = None


Steps = Callable[[Setting, Case], Iterator[Step]]


def variant_of(case: Case) -> Variant:
    return VARIANTS[case.variant]


def backend_of(case: Case) -> BackendKind:
    """The backend that a case's host stands for. Raises UserError."""
    if case.host == "torch":
        import torch

        from exporter.torch_backend.backend import TORCH

        if not torch.cuda.is_available():
            raise UserError(
                "The selftest tests the torch backend on a GPU, and torch sees none.",
                got=f"torch {torch.__version__}",
                remedy="a CUDA build of torch, or the TensorRT package of this GPU",
            )
        return TORCH
    from runtime.backends.tensorrt import TENSORRT

    return TENSORRT
