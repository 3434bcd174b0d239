"""One expert's packed weights: a safetensors file whose tensors are read by ranges straight into a slot's layout."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.dtypes import DTYPES
from plugins.errors import UserError
from runtime.backends.protocol import Bytes
from runtime.layout import Layout
from runtime.numerics import from_bf16_bits

MAX_HEADER_BYTES = 100 << 20
_DTYPES: Mapping[str, str] = MappingProxyType({dtype.safetensors: name for name, dtype in DTYPES.items()})
_NUMPY: Mapping[str, type[Any]] = MappingProxyType(
    {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.int8, "int32": np.int32}
)


@dataclass(frozen=True)
class Stored:
    """A tensor in the file; ``start`` is its offset in bytes from the file's beginning."""

    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].bytes


class WeightsFile:
    """A safetensors file opened for reading by several threads. Raises UserError where it is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path} cannot be read.", expected="a safetensors file", got=error.strerror) from error
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise UserError(f"{path} cannot be read.", expected="a safetensors file", got="a folder or a device")
            self.size = os.fstat(self._file).st_size
            self.tensors: Mapping[str, Stored] = MappingProxyType(self._read_header())
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read_header(self) -> dict[str, Stored]:
        head = os.pread(self._file, 8, 0)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, self.size - 8):
            raise self._damaged("it has no safetensors header")
        try:
            content = json.loads(os.pread(self._file, length, 8))
            return {
                name: self._stored(name, entry, 8 + length) for name, entry in content.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"its header is wrong: {error}") from error

    def _stored(self, name: str, entry: Mapping[str, Any], base: int) -> Stored:
        start, end = map(int, entry["data_offsets"])
        found = Stored(base + start, tuple(map(int, entry["shape"])), _DTYPES[entry["dtype"]])
        if start < 0 or end - start != found.nbytes or base + end > self.size:
            raise ValueError(f"{name} lies outside the file or is of another size than its shape")
        return found

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.path} is not a whole safetensors file: {why}.", remedy="pack the weights again")

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor; bfloat16, which numpy lacks, comes as its bits in uint16. Raises UserError if there is none."""
        found = self.tensors.get(name)
        if found is None or found.dtype not in _NUMPY:
            raise UserError(
                f"{self.path} has no tensor {name!r} of a readable dtype.",
                expected=", ".join(_NUMPY),
                got=found.dtype if found else ", ".join(list(self.tensors)[:5]) or "none",
            )
        out = np.empty(found.shape, _NUMPY[found.dtype])
        self._read(found.start, out.reshape(-1).view(np.uint8))
        return out

    def read_rows(self, name: str, rows: Sequence[int]) -> npt.NDArray[Any]:
        """Some rows of a matrix, in the order given, without reading the rest; bfloat16 as its bits in uint16."""
        found = self.tensors[name]
        out = np.empty((len(rows), *found.shape[1:]), _NUMPY[found.dtype])
        size = found.nbytes // found.shape[0]
        for target, row in zip(out, rows, strict=True):
            self._read(found.start + row * size, target.reshape(-1).view(np.uint8))
        return out

    def is_finite(self, name: str) -> bool:
        """Whether a tensor holds neither NaN nor infinity; integers never do."""
        if self.tensors[name].dtype in ("int8", "int32"):
            return True
        values = self.read(name)
        return bool(np.isfinite(from_bf16_bits(values) if self.tensors[name].dtype == "bf16" else values).all())

    def check(self, prefix: str, wanted: Layout) -> str | None:
        """What is wrong with the tensors ``prefix``… for this layout, or None."""
        for name, place in wanted.places.items():
            found = self.tensors.get(prefix + name)
            if found is None:
                return f"{self.path.name} has no tensor {prefix + name}"
            if (found.shape, found.dtype) != (place.shape, place.dtype):
                return (
                    f"{self.path.name}: {prefix + name} is {found.dtype} {list(found.shape)}, "
                    f"the engine takes {place.dtype} {list(place.shape)}"
                )
        return None

    def fill(self, prefix: str, where: Layout, start: int, target: Bytes) -> None:
        """Read the slot's bytes [start, start + len(target)) of the tensors ``prefix``… into ``target``.

        By pread, not through a mapping: that faults every 4 KiB, and its pages count as memory of this process.
        """
        end = start + len(target)
        for name, place in where.places.items():
            first, last = max(start, place.offset), min(end, place.offset + place.nbytes)
            if first < last:
                at = self.tensors[prefix + name].start + first - place.offset
                self._read(at, target[first - start : last - start])

    def _read(self, at: int, target: Bytes) -> None:
        view = memoryview(target)  # type: ignore[arg-type]  # numpy's arrays are buffers
        while view:
            count = os.preadv(self._file, [view], at)
            if count == 0:
                raise self._damaged("it ends too early")
            view, at = view[count:], at + count
