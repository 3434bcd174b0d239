"""Dense attention in fp32: the oracle of SageAttention."""

from __future__ import annotations

import math

import torch

from plugins.block_int8_quantize.reference import reference as quantize
from plugins.sage_attention.op import HEAD

_ROWS = 1024  # query rows at a time: 1024 × 80,640 fp32 scores are 330 MB


def heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """The last ``width`` columns of x [L, ≥width] as [H, L, 128] (a view)."""
    return x[:, x.shape[1] - width :].unflatten(1, (-1, HEAD)).transpose(0, 1)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q·kᵀ/√128)·v per head, in fp32. q [L,D], k [S,D], v [S,E≥D] bf16 → [L,D] fp32."""
    width = q.shape[1]
    out = torch.empty_like(q, dtype=torch.float32)
    scale = 1 / math.sqrt(HEAD)
    for head, (qh, kh, vh) in enumerate(zip(heads(q, width), heads(k, width), heads(v, width), strict=True)):
        keys, values = kh.float(), vh.float()
        columns = slice(HEAD * head, HEAD * (head + 1))
        for start in range(0, q.shape[0], _ROWS):
            scores = qh[start : start + _ROWS].float() @ keys.T
            out[start : start + _ROWS, columns] = torch.softmax(scores * scale, -1) @ values
    return out


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, precision: str = "int8") -> torch.Tensor:
    """[L,D] in q's dtype: the attention. Both precisions approximate the same function: ``precision`` is ignored."""
    del precision
    return attention(q, k, v).to(q.dtype)


def quantize_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, precision: str = "int8"
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [L,D] and fp32 scales [⌈L/128⌉, D/128]: the attention, quantized without rounding to bf16 first."""
    del precision
    return quantize(attention(q, k, v))
