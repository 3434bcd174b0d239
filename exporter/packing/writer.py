"""Safetensors written tensor by tensor: the library's own writer wants all of them in memory at once."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from exporter.checkpoint.source import TensorMeta
from plugins.dtypes import DTYPES
from plugins.errors import UserError
from plugins.temporary import sweep
from plugins.torch_dtypes import torch_dtype
from runtime.atomic import AtomicWriter, atomic_file, told
from runtime.byte_sizes import gigabytes
from runtime.safetensors_header import encoded_header


def _size(meta: TensorMeta) -> int:
    return math.prod(meta.shape) * DTYPES[meta.dtype].bytes


class SafetensorsWriter(AtomicWriter):
    """A context in which the tensors of a table are written in its order; the file appears whole or not at all.

    Raises UserError if the disk is full or cannot be written.
    """

    def __init__(
        self,
        out: Path,
        tensors: Mapping[str, TensorMeta],
        metadata: Mapping[str, str],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(out)
        self._tensors = tensors
        self._names = iter(tensors)
        self._head = encoded_header(((n, m.dtype, m.shape) for n, m in tensors.items()), metadata)
        self._progress = progress or (lambda done, total: None)
        self._done = 0
        self._total = sum(map(_size, tensors.values()))
        self._file: BinaryIO | None = None

    def __enter__(self) -> SafetensorsWriter:
        self._check_room()
        self.begin()
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        with atomic_file(self.path) as self._file:
            self._put(memoryview(self._head))
            yield
            if next(self._names, None) is not None:
                raise ValueError(f"{self.path} is not complete")

    def write(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """The next tensor, as consecutive pieces of its rows. ValueError on a wrong order, dtype or size: a bug."""
        if name != next(self._names, None):
            raise ValueError(f"{name} is not the next tensor of {self.path}")
        meta = self._tensors[name]
        written = 0
        for piece in pieces:
            if piece.dtype != torch_dtype(meta.dtype):
                raise ValueError(f"{name}: {piece.dtype} in place of {meta.dtype}")
            data = memoryview(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
            written += len(data)
            self._put(data)
            self._done += len(data)
            self._progress(self._done, self._total)
        if written != _size(meta):
            raise ValueError(f"{name}: {written} bytes in place of {_size(meta)}")

    def _check_room(self) -> None:
        need = len(self._head) + self._total
        with told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.path.parent)  # what a killed process left may take most of the disk
            free = shutil.disk_usage(self.path.parent).free
        if free < need:
            raise UserError(
                f"There is no room for {self.path}.",
                expected=f"{gigabytes(need)} free",
                got=gigabytes(free),
                remedy="free some space or choose another folder",
            )

    def _put(self, data: memoryview) -> None:
        if self._file is None:
            raise ValueError("the writer is not open")
        with told(self.path):
            done = 0
            while done < len(data):  # one write takes at most 2 GiB
                done += self._file.write(data[done:]) or 0
