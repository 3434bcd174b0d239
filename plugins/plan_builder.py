"""What an op's kernel.py hands over: its launches before compilation, kernels still being Triton functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plugins.expr import Dim

__all__ = ["Buffer", "Dim", "Launch", "LaunchPlan"]


@dataclass(frozen=True)
class Buffer:
    """A workspace buffer; its content is undefined before a launch writes it."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    ``args`` gives every non-constexpr parameter by name: a str names an input, output or buffer (a pointer), an int or
    expression is an i32, which is compiled as a multiple of 16 where it is such an int. ``constants`` gives every
    constexpr parameter. ``max_registers`` a thread let more programs share an SM; 0 is the compiler's choice.
    ``oldest_sm`` is the first that has the kernel's instructions, where that matters to a host which runs it from PTX
    (plugins/compile.py).
    """

    kernel: Any
    grid: tuple[Dim, Dim, Dim]
    args: Mapping[str, str | Dim]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int = 0
    oldest_sm: int = 80


@dataclass(frozen=True)
class LaunchPlan:
    """Workspace and launches of one op, in order."""

    buffers: tuple[Buffer, ...]
    launches: tuple[Launch, ...]
