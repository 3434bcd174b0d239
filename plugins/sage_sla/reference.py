"""SageSLA in fp32: the oracle (semantics.md, SLA)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from plugins.block_int8_quantize.reference import reference as quantize
from plugins.sage_attention.op import BLOCK_K, BLOCK_Q, HEAD
from plugins.sage_attention.reference import heads
from plugins.sage_sla.op import kept_count

_Q_BLOCKS = 32  # q blocks at a time: at L = 80,640 and topk 100 the gathered k and v take 260 MB each


def _pooled(x: torch.Tensor, block: int) -> torch.Tensor:
    """Mean over blocks of rows, the last over its real rows: [H,L,128] fp32 → [H,⌈L/block⌉,128]."""
    length = x.shape[1]
    blocks = -(-length // block)
    sums = F.pad(x, (0, 0, 0, blocks * block - length)).unflatten(1, (blocks, block)).sum(2)
    rows = torch.full((blocks, 1), float(block), device=x.device)
    rows[-1] = length - (blocks - 1) * block
    return sums / rows


def selection_scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """mean-pooled q · mean-pooled (k − mean k): q, k [L,D] → fp32 [H, ⌈L/128⌉, ⌈L/64⌉]."""
    scores = []
    for qh, kh in zip(heads(q, q.shape[1]), heads(k, k.shape[1]), strict=True):
        keys = kh.float()
        smooth = keys - keys.mean(0, keepdim=True)
        scores.append((_pooled(qh.float()[None], BLOCK_Q) @ _pooled(smooth[None], BLOCK_K).transpose(1, 2))[0])
    return torch.stack(scores)


def kept_blocks(q: torch.Tensor, k: torch.Tensor, topk_milli: int = 100) -> torch.Tensor:
    """Indices of the kept key blocks, ascending, int64 [H, nq, K]; equal scores keep the lower index."""
    scores = selection_scores(q, k)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return order[..., : kept_count(scores.shape[-1], topk_milli)].sort(-1).values


def _blocks(x: torch.Tensor, block: int) -> torch.Tensor:
    """[L,128] → [⌈L/block⌉, block, 128] fp32, zeros after the last row."""
    blocks = -(-x.shape[0] // block)
    return F.pad(x.float(), (0, 0, 0, blocks * block - x.shape[0])).unflatten(0, (blocks, block))


def _sparse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Softmax attention of one head over its kept blocks: q, k, v [L,128], kept [nq,K] → fp32 [L,128]."""
    length = k.shape[0]
    qb, kb, vb = _blocks(q, BLOCK_Q) / math.sqrt(HEAD), _blocks(k, BLOCK_K), _blocks(v, BLOCK_K)
    last, real = kb.shape[0] - 1, length - (kb.shape[0] - 1) * BLOCK_K
    out = torch.empty_like(qb)
    for start in range(0, qb.shape[0], _Q_BLOCKS):
        chosen = kept[start : start + _Q_BLOCKS]
        keys, values = kb[chosen].flatten(1, 2), vb[chosen].flatten(1, 2)
        scores = qb[start : start + _Q_BLOCKS] @ keys.transpose(1, 2)
        scores.unflatten(2, (-1, BLOCK_K)).transpose(1, 2)[chosen == last, :, real:] = -math.inf
        out[start : start + _Q_BLOCKS] = torch.softmax(scores, -1) @ values
    return out.flatten(0, 1)[: q.shape[0]]


def _linear(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """proj_l(φ(q)KV / (1e-5 + φ(q)·z)), φ = softmax over the 128 channels: one head, fp32 [L,128]."""
    phi_q, phi_k = torch.softmax(q.float(), -1), torch.softmax(k.float(), -1)
    ratio = (phi_q @ (phi_k.T @ v.float())) / (1e-5 + phi_q @ phi_k.sum(0))[:, None]
    return ratio @ weight.float().T + bias.float()


def sparse_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """Sparse plus linear branch, in fp32. q, k [L,D], v [L,E≥D] bf16, kept integer [H,nq,K] → [L,D] fp32."""
    width = q.shape[1]
    out = torch.empty_like(q, dtype=torch.float32)
    for head, (qh, kh, vh) in enumerate(zip(heads(q, width), heads(k, width), heads(v, width), strict=True)):
        value = _sparse(qh, kh, vh, kept[head].long()) + _linear(qh, kh, vh, proj_weight, proj_bias)
        out[:, HEAD * head : HEAD * (head + 1)] = value
    return out


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    *,
    topk_milli: int = 100,
    precision: str = "int8",
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """[L,D] in q's dtype of q, k [L,D], v [L,E≥D] bf16, proj [128,128] and [128] fp32; ``kept`` replaces the selection,
    to compare under the same one; ``precision`` is ignored, as both approximate the same function.
    """
    del precision
    kept = kept_blocks(q, k, topk_milli) if kept is None else kept
    return sparse_linear_attention(q, k, v, proj_weight, proj_bias, kept).to(q.dtype)


def quantize_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    *,
    topk_milli: int = 100,
    precision: str = "int8",
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [L,D] and fp32 scales [⌈L/128⌉, D/128] of the same, quantized without rounding to bf16 first."""
    del precision
    kept = kept_blocks(q, k, topk_milli) if kept is None else kept
    return quantize(sparse_linear_attention(q, k, v, proj_weight, proj_bias, kept))
