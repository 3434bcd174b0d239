"""Oracle of BlockInt8Gemm: the exact integer products, scaled and summed in fp32 (semantics.md, W8A8 block-128)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from plugins.block_int8_quantize.reference import reference as quantize

ROWS = 8192  # rows at a time, so that 75,600 × 13,824 fits; a multiple of 128


def product(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """fp32 [M, N]: Σ over 128-wide K blocks of x_scale·weight_scale·(x·weightᵀ), plus bias.

    Each block's integer sum stays below 2^22 and is exact in an fp32 matrix product (with TF32 off, torch's default).
    """
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty(m, n, dtype=torch.float32, device=x.device)
    column_scale = weight_scale.repeat_interleave(128, 0)[:n]
    for row in range(0, m, ROWS):
        part = x[row : row + ROWS]
        row_scale = x_scale[row // 128 :].repeat_interleave(128, 0)[: part.shape[0]]
        acc = torch.zeros(part.shape[0], n, dtype=torch.float32, device=x.device)
        for block, start in enumerate(range(0, k, 128)):
            columns = slice(start, start + 128)
            integer = part[:, columns].float() @ weight[:, columns].float().T
            acc += integer * (row_scale[:, block, None] * column_scale[None, :, block])
        out[row : row + ROWS] = acc + bias
    return out


def reference(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """bf16 [M, N]: the product."""
    return product(x, x_scale, weight, weight_scale, bias).bfloat16()


def gelu_reference(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [M, N] and fp32 scales: GELU(tanh) of the product, quantized without rounding to bf16 first."""
    return quantize(F.gelu(product(x, x_scale, weight, weight_scale, bias), approximate="tanh"))


def residual_reference(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor,
    residual: torch.Tensor,
) -> torch.Tensor:
    """bf16 [M, N]: residual + gate·product."""
    return (residual.float() + gate * product(x, x_scale, weight, weight_scale, bias)).bfloat16()
