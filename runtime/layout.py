"""Where named tensors lie in one allocation: the weights of a stage in a slot, and all inputs and outputs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from plugins.dtypes import DTYPES
from runtime.bundle import OUTPUT_SUFFIX, StageEntry, TensorInfo
from runtime.dims import Sizes, shape_of

ALIGNMENT = 256  # bytes; what TensorRT asks of a binding, and more than our kernels' 16-byte loads and TMA do


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


def layout_of(tensors: Mapping[str, TensorInfo], sizes: Sizes) -> Layout:
    """The layout of a stage's tensors under these names, for these values of its symbols."""
    return layout((name, shape_of(tensor.dims, sizes), tensor.dtype) for name, tensor in tensors.items())


def weight_layout(stage: StageEntry) -> Layout:
    """The slot that holds a stage's weights: of one layer, where the stage is a block."""
    return layout_of({tensor.name: tensor for tensor in stage.weights}, {})


def run_layout(stages: Iterable[StageEntry], sizes: Sizes) -> Layout:
    """Every tensor that passes between the host and these stages, or from stage to stage.

    One that a stage both takes and gives lies there twice, as NAME and NAME_out: the two change places from run to run.
    """
    found: dict[str, TensorInfo] = {}
    for stage in stages:
        given, taken = stage.gives, {tensor.name: tensor for tensor in stage.activations}
        found |= {**taken, **given}
        found |= {name + OUTPUT_SUFFIX: given[name] for name in given if name in taken}
    return layout_of(found, sizes)
