"""What a checkpoint file is to the rest of the package: named tensors whose shapes are known before they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch

FLOATS = ("bf16", "fp16", "fp32")
_BAND_ELEMENTS = 2**23


@dataclass(frozen=True)
class TensorMeta:
    """Shape and dtype of a stored tensor, by the names of plugins.torch_dtypes."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class TensorSource(Protocol):
    """A file, or several, of named tensors. Only ``load`` and ``load_rows`` read a tensor's data."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def tensors(self) -> Mapping[str, TensorMeta]: ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself; nothing where its format has no place for it."""

    def load(self, name: str) -> torch.Tensor: ...

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the first dim."""


def bands(source: TensorSource, name: str) -> Iterator[torch.Tensor]:
    """The tensor by consecutive rows, so that an embedding of gigabytes is never held whole; multiples of 128 rows."""
    shape = source.tensors[name].shape
    if prod(shape) <= _BAND_ELEMENTS:
        yield source.load(name)
        return
    rows = max(1, _BAND_ELEMENTS // (prod(shape[1:]) * 128)) * 128
    for start in range(0, shape[0], rows):
        yield source.load_rows(name, start, min(start + rows, shape[0]))
