"""Safetensors read by byte ranges, and sharded safetensors behind an index.

Not the safetensors library: it maps the whole file, and its errors do not name what is wrong. Every tensor is read
into a buffer of its own, so that the memory held is that of the tensors alive.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.checkpoint.source import TORCH_DTYPES, TensorMeta
from plugins.errors import UserError

MAX_HEADER = 100_000_000  # the library's own bound
INDEX_SUFFIX = ".safetensors.index.json"

# Header name → (our name, bits of one element).
_DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("fp64", 64),
    "F32": ("fp32", 32),
    "F16": ("fp16", 16),
    "BF16": ("bf16", 16),
    "I64": ("int64", 64),
    "I32": ("int32", 32),
    "I16": ("int16", 16),
    "I8": ("int8", 8),
    "U8": ("uint8", 8),
    "BOOL": ("bool", 8),
    "U64": ("uint64", 64),
    "U32": ("uint32", 32),
    "U16": ("uint16", 16),
    "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "F4": ("float4_e2m1fn", 4),
}


@dataclass(frozen=True)
class _Entry:
    meta: TensorMeta
    start: int  # absolute, in the file
    size: int


def _corrupt(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is not a whole safetensors file.",
        expected="a safetensors header that describes exactly the bytes that follow it",
        got=what,
        remedy="download it again (a file of some hundred bytes is a Git LFS pointer, not the weights)",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that occurs twice")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(path: Path, name: str, item: object, base: int) -> _Entry:
    """One header item, checked. Raises UserError."""
    fields = item if isinstance(item, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _corrupt(path, f"{name} of unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise _corrupt(path, f"{name} of shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _corrupt(path, f"{name} with data_offsets {offsets!r}")
    ours, bits = _DTYPES[dtype]
    size = offsets[1] - offsets[0]
    if size * 8 != math.prod(shape) * bits:
        raise _corrupt(path, f"{name} {dtype} {shape} in {size} bytes")
    return _Entry(TensorMeta(tuple(shape), ours), base + offsets[0], size)


def _header(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """The checked header and its metadata: entries lie one after another and end with the file. Raises UserError."""
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > min(total - 8, MAX_HEADER):
                raise _corrupt(path, f"{total} bytes, whose header would take {length}")
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read.", got=str(error)) from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "a header that is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "metadata that is not text by name")
    entries = {name: _entry(path, name, item, 8 + length) for name, item in header.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].size)):
        if entry.start != end:
            raise _corrupt(path, f"{name} at byte {entry.start}, where byte {end} was due")
        end += entry.size
    if end != total:
        raise _corrupt(path, f"{total} bytes where the header describes {end}")
    return entries, metadata


class SafetensorsFile:
    """One safetensors file; the header is read and checked at construction. Raises UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries, self.metadata = _header(path)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def tensors(self) -> dict[str, TensorMeta]:
        return {name: entry.meta for name, entry in self._entries.items()}

    def span(self, name: str) -> tuple[int, int]:
        """Where the tensor's bytes lie in the file: offset and length."""
        entry = self._entries[name]
        return entry.start, entry.size

    def load(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own. Raises UserError where the file has changed since it was opened."""
        entry = self._entries[name]
        return self._read(name, entry.start, entry.size).reshape(entry.meta.shape)

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the first dim, as ``load`` gives them, without reading the others."""
        entry = self._entries[name]
        row = entry.size // entry.meta.shape[0]
        rows = self._read(name, entry.start + start * row, (stop - start) * row)
        return rows.reshape(stop - start, *entry.meta.shape[1:])

    def _read(self, name: str, start: int, size: int) -> torch.Tensor:
        """A tensor's bytes from a place in the file, in its dtype and one dim. Raises UserError."""
        buffer = torch.empty(size, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                done = 0
                while done < size:  # one read returns at most 2 GiB
                    count = file.readinto(view[done:])
                    if not count:
                        raise _corrupt(self.path, f"an end of file within {name}")
                    done += count
        except OSError as error:
            raise UserError(f"{self.path} cannot be read.", got=str(error)) from error
        return buffer.view(TORCH_DTYPES[self._entries[name].meta.dtype])


class ShardedSafetensors:
    """Shards beside an ``*.safetensors.index.json``. Raises UserError where index and shards disagree."""

    def __init__(self, index: Path) -> None:
        self._homes: dict[str, SafetensorsFile] = {}
        shards: dict[str, SafetensorsFile] = {}
        for name, shard in _weight_map(index).items():
            if shard not in shards:
                shards[shard] = SafetensorsFile(_shard_path(index, shard))
            if name not in shards[shard].tensors:
                raise UserError(
                    f"{index} does not describe its shards.", expected=f"{name} in {shard}", got="no such tensor"
                )
            self._homes[name] = shards[shard]
        self._files = (index, *(file.path for _, file in sorted(shards.items())))
        metas = {shard: file.tensors for shard, file in shards.items()}
        self._tensors = {name: metas[file.path.name][name] for name, file in self._homes.items()}

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
        content = json.loads(index.read_text("utf-8"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
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
