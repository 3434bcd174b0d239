"""Safetensors read by byte ranges, and sharded safetensors behind an index.

Not the safetensors library: it maps the whole file, and its errors do not name what is wrong. Every tensor is read
into a buffer of its own, so that the memory held is that of the tensors alive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from exporter.checkpoint.source import TensorMeta
from plugins.errors import UserError
from plugins.torch_dtypes import torch_dtype
from runtime.input_files import open_input, read_input
from runtime.safetensors_header import EXPECTED, read_exactly, read_header, unique_names

INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_BYTES = 16 << 20  # a thousand tensors' names take some hundred kilobytes


class SafetensorsFile:
    """One safetensors file; the header is read and checked at construction. Raises UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self._stored, self.metadata = header.tensors, header.metadata
        self.tensors = {name: TensorMeta(stored.shape, stored.dtype) for name, stored in self._stored.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def span(self, name: str) -> tuple[int, int]:
        """Where the tensor's bytes lie in the file: offset and length."""
        return self._stored[name].start, self._stored[name].nbytes

    def load(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own. Raises UserError where the file has changed since it was opened."""
        return self._read(name, *self.span(name)).reshape(self._stored[name].shape)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the first dim, as ``load`` gives them, without reading the others."""
        first, *rest = self._stored[name].shape
        at, size = self.span(name)
        row = size // first
        return self._read(name, at + start * row, (stop - start) * row).reshape(stop - start, *rest)

    def _read(self, name: str, start: int, size: int) -> torch.Tensor:
        """A tensor's bytes from a place in the file, in its dtype and one dim. Raises UserError."""
        buffer = torch.empty(size, dtype=torch.uint8)
        descriptor = open_input(self.path, EXPECTED)
        try:
            read_exactly(descriptor, self.path, buffer.numpy().data, start)
        finally:
            os.close(descriptor)
        return buffer.view(torch_dtype(self._stored[name].dtype))


class ShardedSafetensors:
    """Tensors of several safetensors files: by an index, or all that a set of shards holds."""

    def __init__(self, files: tuple[Path, ...], homes: Mapping[str, SafetensorsFile]) -> None:
        """``homes``: tensor → the shard that holds it; ``files``: all that was read."""
        self._files, self._homes = files, homes
        self._tensors = {name: file.tensors[name] for name, file in homes.items()}

    @classmethod
    def of_index(cls, index: Path) -> ShardedSafetensors:
        """Shards beside an ``*.safetensors.index.json``. Raises UserError where index and shards disagree."""
        homes: dict[str, SafetensorsFile] = {}
        shards: dict[str, SafetensorsFile] = {}
        for name, shard in _weight_map(index).items():
            if shard not in shards:
                shards[shard] = SafetensorsFile(_shard_path(index, shard))
            if name not in shards[shard].tensors:
                raise UserError(
                    f"{index} does not describe its shards.", expected=f"{name} in {shard}", got="no such tensor"
                )
            homes[name] = shards[shard]
        return cls((index, *(file.path for _, file in sorted(shards.items()))), homes)

    @classmethod
    def of_shards(cls, paths: Sequence[Path]) -> ShardedSafetensors:
        """All tensors of these files. Raises UserError where two hold one of the same name."""
        homes: dict[str, SafetensorsFile] = {}
        for path in paths:
            file = SafetensorsFile(path)
            if twice := sorted(file.tensors.keys() & homes.keys()):
                raise UserError(
                    f"The checkpoint holds {twice[0]} twice.",
                    got=f"in {homes[twice[0]].path.name} and {path.name}",
                    remedy="download the whole folder again",
                )
            homes |= dict.fromkeys(file.tensors, file)
        return cls(tuple(paths), homes)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of all shards; where two differ, the last one's."""
        return {key: value for file in self._homes.values() for key, value in file.metadata.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    @property
    def tensors(self) -> dict[str, TensorMeta]:
        return self._tensors

    def load(self, name: str) -> torch.Tensor:
        return self._homes[name].load(name)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._homes[name].load_rows(name, start, stop)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor → shard's file name, as the index states it. Raises UserError."""
    try:
        content = json.loads(read_input(index, MAX_INDEX_BYTES, "an index of shards"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{index} cannot be read.", expected="a JSON index of shards", got=str(error)) from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise UserError(f"{index} is no index of shards.", expected='"weight_map": {tensor: file name}')
    return found


def _shard_path(index: Path, shard: str) -> Path:
    """The shard beside its index. An index names files of its own folder only: anything else is refused."""
    if not shard.endswith(".safetensors") or "\0" in shard or "/" in shard or "\\" in shard:
        raise UserError(
            f"{index} names a file that it must not.", expected="*.safetensors in the same folder", got=repr(shard)
        )
    path = index.parent / shard
    if not path.is_file():
        raise UserError(f"A shard of {index} is missing.", expected=str(path), remedy="download the whole folder again")
    return path
