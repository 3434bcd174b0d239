"""The launch plan: everything needed to run one plugin node, as bytes.

A plan holds the op's signature, workspace buffers, the compiled kernels (cubins) and the launches in order. It is what
a TensorRT engine carries as the plugin's only field, what the bundle keeps as a file, and what the executor runs.
File form: the magic ``TRTP``, format version (u32 LE), body length (u64 LE), a msgpack body. The length lets a reader
ignore the NUL that TensorRT appends to a field of characters.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from plugins.dtypes import DTYPES
from plugins.expr import Dim, ceil_div, evaluate, from_plain, maximum

MAGIC = b"TRTP"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<4sIQ")
ALIGNMENT = 256  # bytes; what TensorRT and cudaMalloc give, and more than TMA and 16-byte loads ask


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, dtype name and dims (plain expressions) of an input, an output or a workspace buffer."""

    name: str
    dtype: str
    shape: list[Any]


class KernelImage(msgspec.Struct, frozen=True):
    """One compiled kernel. ``shared`` in bytes; ``global_scratch`` in bytes per program."""

    name: str
    cubin: bytes
    num_warps: int
    shared: int
    global_scratch: int
    global_scratch_align: int
    registers: int
    spills: int


class LaunchSpec(msgspec.Struct, frozen=True):
    """One launch: kernel index, grid, and args, each ``["tensor", name]`` or ``["i32", expression]``."""

    kernel: int
    grid: list[Any]
    args: list[list[Any]]


class Plan(msgspec.Struct, frozen=True, dict=True):
    """A whole plan. ``symbols`` maps a symbol to the (input index, axis) it is read from."""

    op: str
    sm: int
    attributes: dict[str, int | str]
    symbols: dict[str, tuple[int, int]]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    buffers: list[TensorSpec]
    kernels: list[KernelImage]
    launches: list[LaunchSpec]

    @cached_property
    def workspace(self) -> list[Dim]:
        """Bytes of each workspace slot, aligned: the buffers in order, then one scratch shared by all launches."""
        sizes = [_bytes(spec) for spec in self.buffers]
        if any(kernel.global_scratch for kernel in self.kernels):
            sizes.append(self._scratch_bytes())
        return [_aligned(size) for size in sizes]

    def _scratch_bytes(self) -> Dim:
        largest: Dim = 0
        for launch in self.launches:
            x, y, z = (from_plain(dim) for dim in launch.grid)
            largest = maximum(largest, x * y * z * self.kernels[launch.kernel].global_scratch)
        return largest

    @cached_property
    def workspace_bytes(self) -> Dim:
        """Total workspace in bytes."""
        total: Dim = 0
        for size in self.workspace:
            total = total + size
        return total

    def bind(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The symbols' values for these input shapes. Raises ValueError where a shape disagrees with the plan."""
        symbols = {name: int(shapes[index][axis]) for name, (index, axis) in self.symbols.items()}
        for spec, shape in zip(self.inputs, shapes, strict=True):
            wanted = shape_of(spec, symbols)
            if tuple(shape) != wanted:
                raise ValueError(f"{self.op}: {spec.name} has shape {tuple(shape)}, this plan wants {wanted}")
        return symbols


def shape_of(spec: TensorSpec, symbols: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor where the symbols have these values."""
    return tuple(evaluate(from_plain(dim), symbols) for dim in spec.shape)


def _bytes(spec: TensorSpec) -> Dim:
    size: Dim = DTYPES[spec.dtype].bytes
    for dim in spec.shape:
        size = size * from_plain(dim)
    return size


def _aligned(size: Dim) -> Dim:
    return ceil_div(size, ALIGNMENT) * ALIGNMENT


def encode(plan: Plan) -> bytes:
    """The plan's bytes; equal plans give equal bytes."""
    body = msgspec.msgpack.encode(plan, order="deterministic")
    return _HEADER.pack(MAGIC, FORMAT_VERSION, len(body)) + body


def decode(data: bytes) -> Plan:
    """The plan in these bytes; bytes after the body are ignored. Raises ValueError if they hold none."""
    if len(data) < _HEADER.size:
        raise ValueError(f"a launch plan starts with {_HEADER.size} header bytes, got {len(data)}")
    magic, version, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"not a launch plan: it starts with {bytes(magic)!r}, expected {MAGIC!r}")
    if version != FORMAT_VERSION:
        raise ValueError(f"launch plan of format {version}; this turbotrt reads {FORMAT_VERSION}: export again")
    body = data[_HEADER.size : _HEADER.size + length]
    if len(body) != length:
        raise ValueError(f"launch plan is cut short: {len(body)} of {length} bytes")
    try:
        return msgspec.msgpack.decode(body, type=Plan)
    except msgspec.DecodeError as error:
        raise ValueError(f"launch plan does not decode: {error}") from error
