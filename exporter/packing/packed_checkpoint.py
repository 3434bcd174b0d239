"""A packed weights file read as a checkpoint: the engines' weights are one more publication of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from exporter.checkpoint.reader import Checkpoint
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.checkpoint.source import TensorMeta, bands
from exporter.checkpoint.table import checkpoint_tensors
from exporter.models import ModelSpec
from exporter.networks.dit.weights import packed_metadata, packed_tensors
from exporter.networks.weight_spec import LinearMode
from exporter.packing.packer import sources
from plugins.errors import UserError


@dataclass(frozen=True)
class _Rows:
    """A checkpoint's tensor as rows [start, stop) of a packed one."""

    stored: str
    start: int
    stop: int


class PackedTensors:
    """A packed file's tensors under the checkpoint's names. Raises UserError where it is not one of this model."""

    def __init__(self, path: Path, model: ModelSpec, linear: LinearMode) -> None:
        self.path, self.quantized = path, linear == "int8"
        self._source = SafetensorsFile(path)
        said = self._source.metadata
        self.has_proj_l = said.get("has_proj_l") == "true"
        wanted = packed_metadata(model, linear, has_proj_l=self.has_proj_l)
        table = {name: TensorMeta(spec.shape, spec.dtype) for name, spec in packed_tensors(model, linear).items()}
        if any(said.get(key) != value for key, value in wanted.items()) or self._source.tensors != table:
            raise UserError(
                f"{path} does not hold weights that were packed for this model.",
                expected=", ".join(f"{key} {value}" for key, value in wanted.items()),
                got=", ".join(f"{key} {said.get(key)}" for key in wanted),
                remedy="turbotrt pack makes it again from the checkpoint",
            )
        self._rows: dict[str, _Rows] = {}
        self.tensors: dict[str, TensorMeta] = {}
        expected = checkpoint_tensors(model, quantized=self.quantized)
        for stored, meta in table.items():
            self._split(stored, meta, {name: expected[name].shape for name in sources(stored)})

    def _split(self, stored: str, meta: TensorMeta, parts: Mapping[str, tuple[int, ...]]) -> None:
        """The tensors of the checkpoint that lie under each other in a packed one."""
        start = 0
        for name, shape in parts.items():
            rows = shape[0] if len(parts) > 1 else meta.shape[0]
            self._rows[name] = _Rows(stored, start, start + rows)
            self.tensors[name] = TensorMeta(shape, meta.dtype)
            start += rows

    @property
    def files(self) -> tuple[Path, ...]:
        return self._source.files

    def load(self, name: str) -> torch.Tensor:
        """The tensor in the packed dtype and the checkpoint's shape. Raises UserError if it cannot be read."""
        rows = self._rows[name]
        return self._source.load_rows(rows.stored, rows.start, rows.stop).reshape(self.tensors[name].shape)

    def bands(self, name: str) -> Iterator[torch.Tensor]:
        """The same by consecutive rows: whole 128-row blocks at a time, but for the last."""
        yield from bands(self, name)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the first dim."""
        rows = self._rows[name]
        return self._source.load_rows(rows.stored, rows.start + start, rows.start + stop)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        return self._source.metadata


def open_packed(path: Path, model: ModelSpec, linear: LinearMode) -> Checkpoint:
    """The packed weights of one expert as a checkpoint; LoRAs are added to it as to any other. Raises UserError."""
    return Checkpoint(PackedTensors(path, model, linear), model)
