"""Gives Triton's interpreter hardware's numbers: alone it truncates to bf16, garbles FP8 and multiplies bf16's bits.

Triton 3.6 and 3.7 keep these functions under private names, so a release that moves them stops here with an
AttributeError. Import only where TRITON_INTERPRET=1 was set before triton's import.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_TORCH = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
#: Products that one instruction adds before the sum is rounded to fp16: m16n8k16 and m16n8k32.
_DEPTH = {tl.float16: 16, tl.float8e4nv: 32}


def _as_torch(data: np.ndarray, dtype: Any) -> torch.Tensor:
    bits = np.ascontiguousarray(data)
    return torch.from_numpy(bits.view(np.uint8)).view(_TORCH[dtype]).reshape(bits.shape)


def convert(data: np.ndarray, source: Any, target: Any, _rounding: Any) -> np.ndarray:
    """Bits of ``data`` in the target dtype, rounded half to even."""
    made = _as_torch(data, source).to(_TORCH[target]).contiguous()
    width = made.element_size()
    return np.asarray(made.view(torch.uint8)).view(_BITS[width]).reshape(made.shape)


def dot(_builder: Any, a: Any, b: Any, acc: Any, _precision: Any, _imprecise: Any) -> Any:
    """a·b + acc: products exact, sums in fp32, or in fp16 after each instruction's share of the products."""
    first, second = (
        x.data if x.dtype.scalar not in _TORCH else _as_torch(x.data, x.dtype.scalar).float().numpy() for x in (a, b)
    )
    if acc.data.dtype != np.float16:
        total = np.matmul(first, second, dtype=acc.data.dtype) + acc.data
    else:
        depth, total = _DEPTH[a.dtype.scalar], acc.data
        for start in range(0, first.shape[1], depth):
            part = first[:, start : start + depth] @ second[start : start + depth]
            total = (total.astype(np.float32) + part).astype(np.float16)
    return interpreter.TensorHandle(total, acc.dtype.scalar)


for _owner, _name in ((interpreter, "_convert_float"), (interpreter.InterpreterBuilder, "create_dot")):
    getattr(_owner, _name)  # AttributeError: see above
interpreter._convert_float = convert
interpreter.InterpreterBuilder.create_dot = dot
