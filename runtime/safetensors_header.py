"""Safetensors headers, read and written: a file comes from anywhere, so nothing it says of itself is believed.

The format: 8 bytes with the header's length N, little-endian; N bytes of JSON that begin with ``{``, each name's value
being ``{"dtype": text, "shape": [dims], "data_offsets": [start, end]}`` and ``"__metadata__"``'s a map of texts; then
the data, every byte of which belongs to one tensor. Offsets count from the end of the header.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from plugins.dtypes import DTYPES
from plugins.errors import UserError
from runtime.input_files import open_input
from runtime.system_errors import unreadable

EXPECTED = "a safetensors file"
METADATA: Final = "__metadata__"
MAX_HEADER_BYTES = 16 << 20  # a model of a thousand tensors has some hundred kilobytes; JSON takes ten times as much
MAX_DIMS = 32  # numpy's limit before 2.0
MAX_TENSOR_BYTES = 2**63 - 1
_DIGITS = 19  # of 2**63 − 1
_ENTRY = {"dtype", "shape", "data_offsets"}
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

#: Header name → bits of one element and its name: that of plugins.dtypes, or torch's where nothing here computes in it.
DTYPE_OF: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "BOOL": (8, "bool"),
        "F4": (4, "float4_e2m1fn"),
        "F6_E2M3": (6, "float6_e2m3fn"),
        "F6_E3M2": (6, "float6_e3m2fn"),
        "F8_E5M2": (8, "float8_e5m2"),
        "F8_E8M0": (8, "float8_e8m0fnu"),
        "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
        "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
        "I16": (16, "int16"),
        "U16": (16, "uint16"),
        "U32": (32, "uint32"),
        "I64": (64, "int64"),
        "U64": (64, "uint64"),
        "F64": (64, "float64"),
        "C64": (64, "complex64"),
    }
    | {dtype.safetensors: (8 * dtype.bytes, name) for name, dtype in DTYPES.items()}
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; ``start`` and ``end`` are offsets in bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What a file holds: its tensors by name, and the texts it says of itself."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The checked header of a file. Raises UserError where it cannot be read or is wrong in any way."""
    descriptor = open_input(path, EXPECTED)
    try:
        return header_of(descriptor, path)
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, path: Path, target: bytearray | memoryview, at: int) -> None:
    """Fill a buffer of bytes from an offset. Raises UserError where the file ends before, or cannot be read."""
    view = memoryview(target)
    while view:
        try:
            count = os.preadv(descriptor, [view], at)  # at most 2 GiB at once
        except OSError as error:
            raise unreadable(path, error, EXPECTED) from error
        if count == 0:
            raise damaged(path, f"it ends too early, at byte {at}")
        view, at = view[count:], at + count


def header_of(descriptor: int, path: Path) -> Header:
    """The checked header of an open file, which ``path`` names in errors. Raises UserError."""
    size = os.fstat(descriptor).st_size
    head = bytearray(8)
    if size < len(head):
        raise damaged(path, f"{size} bytes")
    read_exactly(descriptor, path, head, 0)
    length = int.from_bytes(head, "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise damaged(path, f"{size} bytes, whose header would take {length}")
    text = bytearray(length)
    read_exactly(descriptor, path, text, 8)
    try:
        return _parsed(bytes(text), 8 + length, size)
    except ValueError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, got: str) -> UserError:
    """What is said of every file that is not what the format demands."""
    return UserError(
        f"{path} is not a whole safetensors file.",
        expected="a safetensors header that describes exactly the bytes that follow it",
        got=got,
        remedy="download or pack it again (a file of some hundred bytes is a Git LFS pointer, not the weights)",
    )


def _parsed(raw: bytes, base: int, size: int) -> Header:
    """The header of a file of ``size`` bytes whose data begin at ``base``. Raises ValueError saying what is wrong."""
    _check_depth(raw)
    try:
        content = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique_names,
            parse_int=_integer,
            parse_float=_integer,
            parse_constant=_integer,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"a header that is not JSON: {error}") from error
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text by name")
    for text in (*content, *metadata, *metadata.values()):
        if not text.isascii():
            text.encode()  # half of a surrogate pair, which JSON can spell, breaks whatever prints it
    tensors = {name: _stored(name, entry, base) for name, entry in content.items()}
    _check_cover(tensors, base, size)
    return Header(MappingProxyType(tensors), MappingProxyType(metadata))


def _check_depth(raw: bytes) -> None:
    """Raise ValueError unless the brackets are those of a header: before JSON's parser recurses, or fills memory."""
    if raw[:1] != b"{":
        raise ValueError("a header that is not a JSON object")
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = re.sub(rb'"[^"]*"?', b"", bare).translate(None, _NO_BRACKETS)
    entries = brackets[1:-1].replace(b"{[][]}", b"")
    if entries not in (b"", b"{}"):  # the metadata
        raise ValueError(f"a header nested in another way than names to dtype, shape and offsets: {_short(entries)}")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's object_pairs_hook. Raises ValueError where a name occurs twice: readers differ in which one counts."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {_short(name)} twice")
        found[name] = value
    return found


def _integer(text: str) -> int:
    """JSON's numbers. Raises ValueError on what is no count, or longer than any size of a file."""
    if not text.isdecimal() or len(text) > _DIGITS:
        raise ValueError(f"the number {_short(text)}, which is no size or offset")
    return int(text)


def _stored(name: str, entry: object, base: int) -> Stored:
    """One entry, checked by itself. Raises ValueError."""
    label = _short(name)
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        raise ValueError(f"{label} described by other than {', '.join(sorted(_ENTRY))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_OF:
        raise ValueError(f"{label} of unknown dtype {_short(dtype)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise ValueError(f"{label} of shape {_short(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{label} with data_offsets {_short(offsets)}")
    bits, ours = DTYPE_OF[dtype]
    # Numpy and torch overflow on huge dims of an empty tensor too: strides are computed beside the zero.
    if prod(max(1, dim) for dim in shape) * bits > 8 * MAX_TENSOR_BYTES:
        raise ValueError(f"{label} of the impossible shape {_short(shape)}")
    if (offsets[1] - offsets[0]) * 8 != prod(shape) * bits:
        raise ValueError(f"{label} {dtype} {_short(shape)} in {offsets[1] - offsets[0]} bytes")
    return Stored(ours, tuple(shape), base + offsets[0], base + offsets[1])


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)  # a bool is no count


def _check_cover(tensors: Mapping[str, Stored], base: int, size: int) -> None:
    """Raise ValueError unless the tensors lie one after another from the header to the file's end."""
    end = base
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].end)):
        if tensor.start != end:
            raise ValueError(f"{_short(name)} at byte {tensor.start}, where byte {end} was due")
        end = tensor.end
    if end != size:
        raise ValueError(f"{size} bytes where the header describes {end}")


def _short(value: object) -> str:
    """A value for a message, printable and of bounded length."""
    text = ascii(value[:64] if isinstance(value, str | bytes | list) else value)
    return text if len(text) <= 80 else text[:80] + "…"


def encoded_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data, for (name, dtype, shape) in the order of their data; equal input gives equal bytes.

    Padded with spaces, so that the data begin at a multiple of 8.
    """
    header: dict[str, object] = {METADATA: dict(sorted(metadata.items()))}
    start = 0
    for name, dtype, shape in tensors:
        end = start + prod(shape) * DTYPES[dtype].bytes
        header[name] = {"dtype": DTYPES[dtype].safetensors, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
