"""Packed weights of random values in safetensors, at the rate at which memory is copied: 26 GB in some seconds.

Values are slices of one random buffer, at the scale that trained ones have; several threads write.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from exporter.networks.weight_spec import WeightSpec
from plugins.dtypes import DTYPES
from runtime.numerics import to_bf16_bits
from runtime.safetensors_header import encoded_header

_POOL = 1 << 26  # bytes of INT8 values
_NORMALS = 1 << 22  # fp32 values
NO_METADATA: Mapping[str, str] = MappingProxyType({})


class _Random:
    """Random values at the speed of a copy: every tensor is another slice of one buffer."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._int8 = self._random.integers(-127, 128, 2 * _POOL, dtype=np.int8)
        self._normal = self._random.standard_normal(2 * _NORMALS, dtype=np.float32)

    def int8(self, start: int, count: int) -> Any:
        at = start % _POOL
        return self._int8[at : at + count]

    def normal(self, start: int, count: int) -> Any:
        at = start % _NORMALS
        return self._normal[at : at + count]


def write_random(
    path: Path, table: Mapping[str, WeightSpec], seed: int = 0, metadata: Mapping[str, str] = NO_METADATA
) -> None:
    """A file of these tensors; equal seeds give equal bytes."""
    header = encoded_header(((name, spec.dtype, spec.shape) for name, spec in table.items()), metadata)
    random, at = _Random(seed), len(header)
    path.write_bytes(header)
    with path.open("r+b") as file, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        file.truncate(at + sum(prod(spec.shape) * DTYPES[spec.dtype].bytes for spec in table.values()))
        writes = []
        for number, (name, spec) in enumerate(table.items()):
            writes.append(pool.submit(_write, file.fileno(), at, name, spec, random, 7919 * number))
            at += prod(spec.shape) * DTYPES[spec.dtype].bytes
        for write in writes:
            write.result()


def _write(descriptor: int, at: int, name: str, spec: WeightSpec, random: _Random, start: int) -> None:
    for piece in _pieces(name, spec, random, start):
        data = memoryview(piece).cast("B")
        at += os.pwrite(descriptor, data, at)


def _pieces(name: str, spec: WeightSpec, random: _Random, start: int) -> Iterator[Any]:
    """One tensor by parts: matrices of deviation 1/√K, norm weights around 1, small biases, open gates."""
    left = prod(spec.shape)
    if spec.dtype == "int8":
        while left:
            yield random.int8(start, count := min(left, _POOL))
            start, left = start + count, left - count
        return
    part = _scaled(name, spec, random.normal(start, min(left, _NORMALS)))
    made = to_bf16_bits(part) if spec.dtype == "bf16" else part.astype(np.float32)
    while left:  # a tensor that is longer repeats it
        yield made[: min(left, len(made))]
        left -= min(left, len(made))


def _scaled(name: str, spec: WeightSpec, values: Any) -> Any:
    if name.endswith(".scale"):
        return np.full_like(values, 1 / (73.3 * (128 * spec.shape[1]) ** 0.5))
    if "norm" in name or "gamma" in name:
        return 1 + 0.1 * values
    if name.endswith("modulation"):
        opened = 0.1 * values
        if name.startswith("blocks."):
            opened.reshape(6, -1)[2::3] += 0.5
        return opened
    if name.endswith("weight") and len(spec.shape) > 1 and "token_embedding" not in name:
        return values * prod(spec.shape[1:]) ** -0.5
    return values if "token_embedding" in name else 0.02 * values
