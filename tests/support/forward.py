"""Runs the Triton kernels of RTX parts on a Hopper GPU: the PTX that Triton wrote for them, assembled for sm_90.

PTX runs on every later architecture, so this is the same program down to ptxas: the mma.sync instructions, their
layouts and their FP16 sums. Not so sm_120: its own tensor copies stay out, and its configs are compiled for sm_89.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget

from plugins import torch_op
from plugins.compile import binary_tool, build_plan
from plugins.op import AttrValue, Op
from plugins.plan import encode

#: Parts whose kernels are no Hopper kernels.
RTX = (80, 86, 89, 120)
NEWEST_PTX = 89
HOPPER = "sm_90"


def assemble(ptx: str) -> bytes:
    """A cubin for sm_90. Raises CalledProcessError with ptxas's words."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [str(binary_tool("ptxas")), "-arch", HOPPER, str(source), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return made.read_bytes()


def forward_compile(compile_for: Any) -> Any:
    """triton.compile that ends with a cubin for sm_90."""

    def run(source: Any, target: GPUTarget, options: Mapping[str, Any]) -> SimpleNamespace:
        lowered = GPUTarget(target.backend, min(target.arch, NEWEST_PTX), target.warp_size)
        made = compile_for(source, target=lowered, options=options)
        return SimpleNamespace(metadata=made.metadata, asm={"cubin": assemble(made.asm["ptx"])})

    return run


def run_kernels_of(monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    """From here on the torch ops run the plans of an RTX part on the Hopper GPU that is there."""
    forward = forward_compile(triton.compile)

    @cache
    def plan(op: str, static: tuple[tuple[str, int], ...], attributes: tuple[tuple[str, AttrValue], ...]) -> bytes:
        from plugins.registry import OPS

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton, "compile", forward)
            return encode(build_plan(OPS[op], dict(static), dict(attributes), sm))

    def plan_bytes(op: Op, dims: Mapping[str, int], attributes: Mapping[str, AttrValue], _sm: int) -> bytes:
        static = tuple(sorted((name, size) for name, size in dims.items() if name not in op.dynamic))
        return plan(op.name, static, tuple(sorted(op.attribute_values(attributes).items())))

    monkeypatch.setattr(torch_op, "plan_bytes", plan_bytes)
