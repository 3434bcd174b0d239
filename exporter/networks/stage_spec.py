"""What one engine is made from: a function of activations and weights, with names, dtypes and dimensions of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from exporter.networks.weight_spec import WeightSpec
from runtime.bundle import OUTPUT_SUFFIX, Component, Profile, StageEntry, StageName, TensorInfo


@dataclass(frozen=True)
class StageTensor:
    """An activation that a stage takes or gives: dtype name and dims, as ``runtime.bundle.TensorInfo`` has them."""

    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class StageSpec:
    """One stage. ``function`` takes the activations in order, then the mapping of weights, and gives the outputs.

    ``profile`` is (min, opt, max) of each of the stage's symbols. ``choices``: the export's choices that its graph
    depends on. ``plans``: whether its graph holds ops of ours, whose kernels are compiled for the GPU.
    """

    name: StageName
    component: Component
    inputs: Mapping[str, StageTensor]
    weights: Mapping[str, WeightSpec]
    outputs: Mapping[str, StageTensor]
    function: Callable[..., Any]
    profile: tuple[int, int, int]
    choices: Mapping[str, object] = field(default_factory=dict)
    plans: bool = False

    @property
    def input_infos(self) -> tuple[TensorInfo, ...]:
        """Activations and weights as a manifest states them, in the engine's order."""
        taken = [TensorInfo(name=name, dtype=t.dtype, dims=t.dims) for name, t in self.inputs.items()]
        held = [TensorInfo(name=n, dtype=w.dtype, dims=w.shape, weight=True) for n, w in self.weights.items()]
        return (*taken, *held)

    @property
    def output_infos(self) -> tuple[TensorInfo, ...]:
        """Outputs as a manifest states them, by their names in ONNX and in the engine."""
        return tuple(
            TensorInfo(name=f"{name}{OUTPUT_SUFFIX}", dtype=t.dtype, dims=t.dims) for name, t in self.outputs.items()
        )

    def entry(self, onnx: str) -> StageEntry:
        """The stage as a manifest states it before an engine is built; ``onnx`` is the file of its graph."""
        low, middle, high = self.profile
        return StageEntry(
            component=self.component,
            name=self.name,
            onnx=onnx,
            inputs=self.input_infos,
            outputs=self.output_infos,
            profile=Profile(min=low, opt=middle, max=high),
        )


def multiple(symbol: str, factor: int) -> str:
    """The dim that is a multiple of a symbol."""
    return symbol if factor == 1 else f"{factor}*{symbol}"
