"""What a selftest exports: small bundles that have everything once, and the models that it times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from exporter.gpus import GpuSpec
from exporter.models import MODELS, ModelSpec
from exporter.networks.dit.options import Attention, BlockOptions
from exporter.networks.weight_spec import LinearMode
from exporter.spec import ExportSpec
from runtime.bundle import COMPONENTS, Component

#: wan-tiny with as many layers as can stream: two take as much in slots of their own.
TINY = replace(MODELS["wan-tiny"], name="wan-tiny-4", layers=4)
_IMAGE = replace(
    TINY,
    name="wan-tiny-4-i2v",
    in_channels=36,
    sigma_max=200.0,
    experts=("high-noise", "low-noise"),
    boundary=0.9,
)
#: Videos (width, height, frames): the model's own, L = 200, and one of fewer frames and other sides, L = 108.
SIZES = ((128, 80, 17), (96, 96, 9))
#: The bundle whose engines bring the plugin library themselves.
EMBEDDED = "embedded-plugins"
#: Models of real size, of which a block and a step are timed.
LARGE = ("wan2.1-1.3b-480p", "wan2.1-14b-720p")


@dataclass(frozen=True)
class Variant:
    """One bundle. ``model`` is of the table or made from one of it; ``embedded``: engines bring the plugin library."""

    name: str
    model: ModelSpec
    attention: Attention = "sagesla"
    linear: LinearMode = "int8"
    components: tuple[Component, ...] = ("dit",)
    text_linear: LinearMode = "bf16"
    embedded: bool = False

    @property
    def options(self) -> BlockOptions:
        return BlockOptions(self.attention, linear=self.linear)

    @property
    def weighted(self) -> bool:
        """Whether its bundle gets weights: not those of real size, which are timed on random ones."""
        return self.name not in LARGE

    def spec(self, gpu: GpuSpec, out: Path, checkpoint: str | None, *, onnx_only: bool) -> ExportSpec:
        """The export that makes its bundle."""
        return ExportSpec(
            self.model,
            gpu,
            self.attention,
            linear=self.linear,
            checkpoint=checkpoint,
            out=out,
            onnx_only=onnx_only,
            components=self.components,
            text_linear=self.text_linear,
            embed_plugins=self.embedded,
        )


def _table() -> dict[str, Variant]:
    """Every attention with either kind of Linears, one of them with INT8 text Linears; image-to-video with all else."""
    found = {}
    for attention in get_args(Attention):
        for linear in get_args(LinearMode):
            name = f"{attention}-{linear}"
            found[name] = Variant(name, TINY, attention, linear)
    last = found["original-bf16"]
    found[last.name] = replace(last, components=("dit", "text"), text_linear="int8")
    found["image-to-video"] = Variant("image-to-video", _IMAGE, components=COMPONENTS)
    found[EMBEDDED] = Variant(EMBEDDED, TINY, embedded=True)
    return found | {name: Variant(name, MODELS[name]) for name in LARGE}


VARIANTS: Mapping[str, Variant] = MappingProxyType(_table())
#: The variants that are tested; the first alone where little time is to be spent.
SMALL = tuple(name for name in VARIANTS if name not in (EMBEDDED, *LARGE))
QUICK = SMALL[:1]
