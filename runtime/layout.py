"""Where named tensors lie in one allocation: the weights of a stage in a slot, and all inputs and outputs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from plugins.dtypes import DTYPES
from runtime.bundle import Manifest, ModelFacts, StageFiles

ALIGNMENT = 256  # bytes; what TensorRT asks of a binding, and more than our kernels' 16-byte loads and TMA do
OUTPUT_SUFFIX = "_out"  # a stage may give what it takes: ONNX needs two names

#: What each stage takes besides weights, and gives; the names are those of the engines' tensors.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embed": ("tokens", "time_features", "text", "condition"),
        "block": ("x", "context", "e0", "cos", "sin"),
        "head": ("x", "e", "tokens", "noise", "a", "b", "c"),
    }
)
OUTPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"embed": ("x", "context", "e", "e0"), "block": ("x",), "head": ("tokens", "v")}
)


@dataclass(frozen=True)
class Place:
    """One tensor in an allocation; ``offset`` in bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].bytes


@dataclass(frozen=True)
class Layout:
    """Tensors by name, each at an aligned offset, and the size in bytes of the allocation that holds them."""

    places: Mapping[str, Place]
    nbytes: int


def aligned(count: int) -> int:
    """Bytes, rounded up to the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def layout(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> Layout:
    """The layout of tensors given as (name, shape, dtype name), in that order."""
    places: dict[str, Place] = {}
    end = 0
    for name, shape, dtype in tensors:
        places[name] = Place(end, shape, dtype)
        end += aligned(places[name].nbytes)
    return Layout(MappingProxyType(places), end)


def stage_files(manifest: Manifest, stage: str) -> StageFiles:
    """The manifest's entry of a stage. Raises ValueError if the bundle has no such stage."""
    for entry in manifest.stages:
        if entry.name == stage:
            return entry
    raise ValueError(f"the bundle has no stage {stage!r}: {', '.join(entry.name for entry in manifest.stages)}")


def activation_names(manifest: Manifest, stage: str) -> tuple[str, ...]:
    """The stage's inputs that are not weights, in the order of its engine."""
    return tuple(t.name for t in stage_files(manifest, stage).inputs if t.name in ACTIVATIONS[stage])


def weight_layout(manifest: Manifest, stage: str) -> Layout:
    """The slot that holds a stage's weights: of one layer, where the stage is the block."""
    known = ACTIVATIONS[stage]
    inputs = (t for t in stage_files(manifest, stage).inputs if t.name not in known)
    return layout((t.name, tuple(map(int, t.dims)), t.dtype) for t in inputs)


def run_layout(model: ModelFacts, tokens: int) -> Layout:
    """Every tensor that passes between host and stages, or from stage to stage, for L tokens; x twice, to alternate."""
    d, length = model.dim, tokens
    condition = 4 * model.in_channels - 64
    tensors: list[tuple[str, tuple[int, ...], str]] = [
        ("x0", (length, d), "bf16"),
        ("x1", (length, d), "bf16"),
        ("context", (model.text_length, d), "bf16"),
        ("e", (1, d), "fp32"),
        ("e0", (6, d), "fp32"),
        ("text", (model.text_length, 4096), "bf16"),
        ("time_features", (1, model.freq_dim), "fp32"),
        ("cos", (length, 64), "fp32"),
        ("sin", (length, 64), "fp32"),
        ("tokens", (length, 64), "fp32"),
        ("tokens_out", (length, 64), "fp32"),
        ("noise", (length, 64), "fp32"),
        ("v", (length, 64), "fp32"),
        ("a", (1,), "fp32"),
        ("b", (1,), "fp32"),
        ("c", (1,), "fp32"),
    ]
    return layout([*tensors, *([("condition", (length, condition), "fp32")] if condition else [])])
