"""What a checkpoint file is to the rest of the package: named tensors whose shapes are known before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}
FLOATS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class TensorMeta:
    """Shape and dtype of a stored tensor; dtypes that no released model uses keep their format's own name."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class TensorSource(Protocol):
    """A file, or several, of named tensors. Only ``load`` reads a tensor's data."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def tensors(self) -> Mapping[str, TensorMeta]: ...

    def load(self, name: str) -> torch.Tensor: ...
