"""A packed tensor's shape and dtype: what every network's table of weights is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LinearMode = Literal["int8", "bf16"]


@dataclass(frozen=True)
class WeightSpec:
    """One packed tensor: shape and dtype ("int8", "fp32" or "bf16")."""

    shape: tuple[int, ...]
    dtype: str


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
