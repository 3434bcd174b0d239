"""The DiT in plain fp32 PyTorch, straight from a checkpoint: the reference that quantized models are compared with.

Written from semantics.md and apart from the stages and the ops' references, whose errors it is there to show. Weights
are read when a layer needs them and dropped after: at any time one matrix of the checkpoint is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.models import EPS, HEAD_DIM
from exporter.networks.dit.weights import PROJ_L_SOURCE

Load = Callable[[str], Tensor]  # canonical name → fp32 tensor on the device
BLOCK_Q, BLOCK_K = 128, 64
_BUDGET = 1 << 26  # scores in memory at once: 256 MiB


@dataclass(frozen=True)
class PlainAttention:
    """Self-attention: ``topk_milli`` thousandths of the key blocks and the linear branch, or all keys if None."""

    topk_milli: int | None = 100


def linear(load: Load, name: str, x: Tensor) -> Tensor:
    return F.linear(x, load(f"{name}.weight"), load(f"{name}.bias"))


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def _rms_norm(load: Load, name: str, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], load(f"{name}.weight"), eps=EPS)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each head's pairs (2i, 2i+1) as complex numbers, turned by the token's angles."""
    turn = torch.complex(cos, sin)[:, None]
    pairs = torch.view_as_complex(x.reshape(x.shape[0], -1, HEAD_DIM // 2, 2).contiguous())
    return torch.view_as_real(pairs * turn).reshape(x.shape)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, HEAD_DIM)).transpose(0, 1)


def embed(
    load: Load, tokens: Tensor, time_features: Tensor, text: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [L, D], context [512, D], e [1, D], e0 [6, D], all fp32."""
    x = linear(load, "patch_embedding", tokens if condition is None else torch.cat((tokens, condition), 1))
    hidden = F.gelu(linear(load, "text_embedding.0", text.float()), approximate="tanh")
    e = linear(load, "time_embedding.2", F.silu(linear(load, "time_embedding.0", time_features)))
    e0 = linear(load, "time_projection.1", F.silu(e)).reshape(6, -1)
    return x, linear(load, "text_embedding.2", hidden), e, e0


def block(
    load: Load,
    x: Tensor,
    context: Tensor,
    e0: Tensor,
    cos: Tensor,
    sin: Tensor,
    attention: PlainAttention,
    kept: Tensor | None = None,
) -> Tensor:
    """One transformer block, fp32 [L, D]. ``kept`` (int [H, nq, K]) replaces the selection of key blocks."""
    shift1, scale1, gate1, shift2, scale2, gate2 = load("modulation")[0] + e0

    y = _layer_norm(x) * (1 + scale1) + shift1
    q = _rotated(_rms_norm(load, "self_attn.norm_q", linear(load, "self_attn.q", y)), cos, sin)
    k = _rotated(_rms_norm(load, "self_attn.norm_k", linear(load, "self_attn.k", y)), cos, sin)
    v = linear(load, "self_attn.v", y)
    o = _self_attention(load, q, k, v, attention, kept)
    x = x + gate1 * linear(load, "self_attn.o", o)

    z = _layer_norm(x) * load("norm3.weight") + load("norm3.bias")
    q = _rms_norm(load, "cross_attn.norm_q", linear(load, "cross_attn.q", z))
    k = _rms_norm(load, "cross_attn.norm_k", linear(load, "cross_attn.k", context))
    o = _dense(_heads(q), _heads(k), _heads(linear(load, "cross_attn.v", context)))
    x = x + linear(load, "cross_attn.o", o)

    u = _layer_norm(x) * (1 + scale2) + shift2
    return x + gate2 * linear(load, "ffn.2", F.gelu(linear(load, "ffn.0", u), approximate="tanh"))


def head(load: Load, x: Tensor, e: Tensor) -> Tensor:
    """Velocity fp32 [L, 64], features ordered (c, kt, kh, kw)."""
    shift, scale = load("head.modulation")[0] + e
    v = linear(load, "head.head", _layer_norm(x) * (1 + scale) + shift)
    return v.unflatten(1, (4, 16)).mT.flatten(1)


def _self_attention(
    load: Load, q: Tensor, k: Tensor, v: Tensor, attention: PlainAttention, kept: Tensor | None
) -> Tensor:
    q, k, v = _heads(q), _heads(k), _heads(v)
    if attention.topk_milli is None:
        return _dense(q, k, v)
    if kept is None:
        kept = _selection(q, k, attention.topk_milli)
    phi_q, phi_k = q.softmax(-1), k.softmax(-1)
    ratio = phi_q @ (phi_k.mT @ v) / (1e-5 + phi_q @ phi_k.sum(1)[..., None])
    out = _sparse(q, k, v, kept) + linear(load, PROJ_L_SOURCE, ratio)
    return out.transpose(0, 1).flatten(1)


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√128)·v of [H, L, 128] → [L, H·128], some rows at a time."""
    rows = max(1, _BUDGET // k.shape[1])
    out = torch.empty_like(q)
    for h in range(q.shape[0]):
        for start in range(0, q.shape[1], rows):
            scores = q[h, start : start + rows] @ k[h].T / math.sqrt(HEAD_DIM)
            out[h, start : start + rows] = scores.softmax(-1) @ v[h]
    return out.transpose(0, 1).flatten(1)


def _means(x: Tensor, size: int) -> Tensor:
    """Mean over consecutive rows, the last over what is left: [H, L, 128] → [H, ⌈L/size⌉, 128]."""
    return torch.stack([part.mean(1) for part in x.split(size, 1)], 1)


def _selection(q: Tensor, k: Tensor, topk_milli: int) -> Tensor:
    """The kept key blocks of each q block, [H, nq, K], ascending (semantics.md, SLA, 1)."""
    scores = _means(q, BLOCK_Q) @ _means(k - k.mean(1, keepdim=True), BLOCK_K).mT
    count = max(1, scores.shape[-1] * topk_milli // 1000)
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :count].sort(-1).values


def _sparse(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    """Softmax attention of each q block over its kept key blocks: [H, L, 128]."""
    out = torch.empty_like(q)
    length = k.shape[1]
    for h in range(q.shape[0]):
        for index, start in enumerate(range(0, length, BLOCK_Q)):
            rows = (kept[h, index].long()[:, None] * BLOCK_K + torch.arange(BLOCK_K, device=q.device)).flatten()
            rows = rows[rows < length]
            scores = q[h, start : start + BLOCK_Q] @ k[h, rows].T / math.sqrt(HEAD_DIM)
            out[h, start : start + BLOCK_Q] = scores.softmax(-1) @ v[h, rows]
    return out
