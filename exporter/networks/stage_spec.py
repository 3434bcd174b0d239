"""What one engine is made from: a function of activations and weights, with names, dtypes and dimensions of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from exporter.networks.weight_spec import WeightSpec
from runtime.layout import OUTPUT_SUFFIX

Component = Literal["dit", "text", "vae"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


@dataclass(frozen=True)
class StageInput:
    """One activation input: dtype name and dims, each a number, a symbol ("L") or a multiple of one ("8*H")."""

    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class StageSpec:
    """One stage. ``function`` takes the activations in order, then the mapping of weights, and gives the outputs.

    ``profile`` is (min, opt, max) of each of the stage's symbols. ``output_dims`` states the outputs' dims where the
    tracer would make up symbols of its own.
    """

    name: str
    component: Component
    inputs: Mapping[str, StageInput]
    weights: Mapping[str, WeightSpec]
    outputs: tuple[str, ...]
    function: Callable[..., Any]
    profile: tuple[int, int, int]
    output_dims: tuple[tuple[int | str, ...], ...] | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs in ONNX and in the engine."""
        return tuple(f"{name}{OUTPUT_SUFFIX}" for name in self.outputs)


def multiple(symbol: str, factor: int) -> str:
    """The dim that is a multiple of a symbol."""
    return symbol if factor == 1 else f"{factor}*{symbol}"
