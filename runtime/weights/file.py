"""One expert's packed weights: a safetensors file whose tensors are read by ranges straight into a slot's layout."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.dtypes import DTYPES
from plugins.errors import UserError
from runtime.backends.protocol import Bytes
from runtime.input_files import open_input
from runtime.layout import Layout
from runtime.numerics import from_bf16_bits
from runtime.safetensors_header import EXPECTED, Stored, header_of, read_exactly

_INTEGERS = ("int8", "uint8", "int32")


class WeightsFile:
    """A safetensors file opened for reading by several threads. Raises UserError where it is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = open_input(path, EXPECTED)
        self.close = weakref.finalize(self, os.close, self.descriptor)  # once, and with the last reference too
        try:
            self.tensors: Mapping[str, Stored] = header_of(self.descriptor, path).tensors
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor; dtypes that numpy lacks come as their bits. Raises UserError if there is none."""
        found, dtype = self._readable(name)
        out = np.empty(found.shape, dtype)
        self._read(found.start, out.reshape(-1).view(np.uint8))
        return out

    def read_rows(self, name: str, rows: Sequence[int]) -> npt.NDArray[Any]:
        """Some rows of a matrix, in the order given, as ``read`` gives them, without reading the rest."""
        found, dtype = self._readable(name)
        out = np.empty((len(rows), *found.shape[1:]), dtype)
        size = found.nbytes // found.shape[0]
        for target, row in zip(out, rows, strict=True):
            self._read(found.start + row * size, target.reshape(-1).view(np.uint8))
        return out

    def _readable(self, name: str) -> tuple[Stored, str]:
        """A tensor and its numpy dtype. Raises UserError."""
        found = self.tensors.get(name)
        if found is None or found.dtype not in DTYPES:
            raise UserError(
                f"{self.path} has no tensor {name!r} of a readable dtype.",
                expected=", ".join(DTYPES),
                got=found.dtype if found else ", ".join(map(ascii, list(self.tensors)[:5])) or "none",
                remedy="give the file that holds it",
            )
        return found, DTYPES[found.dtype].numpy

    def is_finite(self, name: str) -> bool:
        """Whether a tensor holds neither NaN nor infinity; integers never do."""
        if self.tensors[name].dtype in _INTEGERS:
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
        read_exactly(self.descriptor, self.path, target.data, at)
