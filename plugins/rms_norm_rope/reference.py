"""Oracle of RMSNorm over D (all heads together, eps 1e-6) and of the rotary embedding (semantics.md, DiT forward)."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """fp32 [L, D]: x·weight / √(mean(x²) + eps)."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """fp32 [L, H·128]: pairs (2i, 2i+1) of each head rotated by the angles whose cos and sin are [L, 64]."""
    length, dim = x.shape
    even, odd = x.view(length, dim // 128, 64, 2).unbind(-1)
    c, s = cos[:, None], sin[:, None]
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).view(length, dim)


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """bf16 [L, D]: RMSNorm of the first D columns of x [L, E]."""
    return rms_norm(x[:, : weight.shape[0]], weight).bfloat16()


def qk_reference(
    qk: torch.Tensor, weight_q: torch.Tensor, weight_k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """bf16 q and k [L, D]: RMSNorm and rotary embedding of the first and second D columns of qk [L, E]."""
    d = weight_q.shape[0]
    q = rope(rms_norm(qk[:, :d], weight_q), cos, sin)
    k = rope(rms_norm(qk[:, d : 2 * d], weight_k), cos, sin)
    return q.bfloat16(), k.bfloat16()
