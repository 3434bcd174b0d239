"""The launch plan: everything needed to run one plugin node, as bytes.

A plan holds the op's signature, workspace buffers, the compiled kernels (cubins) and the launches in order. It is what
a TensorRT engine carries as the plugin's only field, what the bundle keeps as a file, and what the executor runs.
File form: the magic ``TRTP``, format version (u32 LE), body length (u64 LE), a msgpack body. The length lets a reader
ignore the NUL that TensorRT appends to a field of characters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from plugins.dtypes import DTYPES
from plugins.expr import Dim, ceil_div, evaluate, from_plain, maximum, symbols_of

MAGIC = b"TRTP"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<4sIQ")
ALIGNMENT = 256  # bytes; what TensorRT and cudaMalloc give, and more than TMA and 16-byte loads ask


# A plan file comes with a bundle, from anywhere: what it may say is bounded here. Ours have a tenth of these figures.
MAX_NAME = 256  # characters
MAX_DIMS = 8  # of a tensor
MAX_COUNT = 1 << 30
MAX_LIST = 64  # attributes, tensors of a kind, kernels, launches, arguments of a launch
MAX_SYMBOLS = 16
MAX_WARPS = 32
MAX_SHARED = 1 << 18  # bytes
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=r"^[\x20-\x7e]+\Z")]
_Dims = Annotated[list[Any], Meta(max_length=MAX_DIMS)]
_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, dtype name and dims (plain expressions) of an input, an output or a workspace buffer."""

    name: Name
    dtype: str
    shape: _Dims

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name} has the dtype {self.dtype[:64]!a}")

    def dims(self) -> list[Dim]:
        """The shape's expressions. Raises ValueError where one is none."""
        return [from_plain(dim) for dim in self.shape]


class KernelImage(msgspec.Struct, frozen=True):
    """One compiled kernel. ``shared`` in bytes; ``global_scratch`` in bytes per program."""

    name: Name
    cubin: bytes
    num_warps: Annotated[int, Meta(ge=1, le=MAX_WARPS)]
    shared: Annotated[int, Meta(ge=0, le=MAX_SHARED)]
    global_scratch: _Count
    global_scratch_align: _Count
    registers: _Count
    spills: _Count


class LaunchSpec(msgspec.Struct, frozen=True):
    """One launch: kernel index, grid, and args, each ``["tensor", name]`` or ``["i32", expression]``."""

    kernel: _Count
    grid: Annotated[list[Any], Meta(min_length=3, max_length=3)]
    args: Annotated[list[Annotated[list[Any], Meta(min_length=2, max_length=2)]], Meta(max_length=MAX_LIST)]

    def dims(self) -> Iterator[Dim]:
        """The expressions of grid and arguments. Raises ValueError where one is none, or an argument of no kind."""
        yield from map(from_plain, self.grid)
        for kind, value in self.args:
            if kind == "i32":
                yield from_plain(value)
            elif kind != "tensor":
                raise ValueError(f"an argument of the kind {str(kind)[:64]!a}")

    def tensors(self) -> list[Any]:
        """The names of the tensors among the arguments."""
        return [value for kind, value in self.args if kind == "tensor"]


_Tensors = Annotated[list[TensorSpec], Meta(max_length=MAX_LIST)]


class Plan(msgspec.Struct, frozen=True, dict=True):
    """A whole plan. ``symbols`` maps a symbol to the (input index, axis) it is read from."""

    op: Name
    sm: _Count
    attributes: Annotated[dict[Name, int | Name], Meta(max_length=MAX_LIST)]
    symbols: Annotated[dict[Name, tuple[_Count, _Count]], Meta(max_length=MAX_SYMBOLS)]
    inputs: _Tensors
    outputs: _Tensors
    buffers: _Tensors
    kernels: Annotated[list[KernelImage], Meta(max_length=MAX_LIST)]
    launches: Annotated[list[LaunchSpec], Meta(max_length=MAX_LIST)]

    def __post_init__(self) -> None:
        specs = [*self.inputs, *self.outputs, *self.buffers]
        names = {spec.name for spec in specs}
        if len(names) != len(specs):
            raise ValueError("two tensors of one name")
        dims = [dim for spec in specs for dim in spec.dims()] + [dim for part in self.launches for dim in part.dims()]
        if unknown := set().union(*map(symbols_of, dims)) - set(self.symbols):
            raise ValueError(f"the symbol {min(unknown)[:64]!a}, which no input gives")
        for name, (index, axis) in self.symbols.items():
            if index >= len(self.inputs) or axis >= len(self.inputs[index].shape):
                raise ValueError(f"the symbol {name!a} read from axis {axis} of input {index}")
        for launch in self.launches:
            if launch.kernel >= len(self.kernels):
                raise ValueError(f"a launch of kernel {launch.kernel} of {len(self.kernels)}")
            if unknown_tensors := [value for value in launch.tensors() if value not in names]:
                raise ValueError(f"an argument that is no tensor: {str(unknown_tensors[0])[:64]!a}")

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
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(spec.shape):
                raise ValueError(f"{self.op}: {spec.name} has shape {tuple(shape)}, this plan wants {spec.shape}")
        symbols = {name: int(shapes[index][axis]) for name, (index, axis) in self.symbols.items()}
        for spec, shape in zip(self.inputs, shapes, strict=True):
            wanted = shape_of(spec, symbols)
            if tuple(shape) != wanted:
                raise ValueError(f"{self.op}: {spec.name} has shape {tuple(shape)}, this plan wants {wanted}")
        return symbols


def shape_of(spec: TensorSpec, symbols: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor where the symbols have these values."""
    return tuple(evaluate(dim, symbols) for dim in spec.dims())


def _bytes(spec: TensorSpec) -> Dim:
    size: Dim = DTYPES[spec.dtype].bytes
    for dim in spec.dims():
        size = size * dim
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
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"launch plan does not decode: {error}") from error
