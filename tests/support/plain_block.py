"""One DiT block in fp32 from packed weights, at real sizes: semantics.md written again, a slice of rows or a head at a
time, so that L = 75,600 takes seconds on a GPU. Attention uses given kept blocks.

Weights are dequantized: an INT8 checkpoint is the model, and its distance from the float model it was made of is the
checkpoint's, not the engine's. What differs from this block is therefore what an engine adds: activations quantized
to INT8, attention's INT8 and FP8, bf16 between ops.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plugins.sage_sla.reference import sparse_linear_attention

Weights = dict[str, Tensor]
_ROWS = 16384


def _weight(weights: Weights, name: str) -> Tensor:
    q, scale = weights[f"{name}.int8_weight"], weights[f"{name}.scale"]
    full = scale.repeat_interleave(128, 0)[: q.shape[0]].repeat_interleave(128, 1)[:, : q.shape[1]]
    return q.float() * full


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, _weight(weights, name), weights[f"{name}.bias"])


def _norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.unflatten(1, (-1, 64, 2)).unbind(-1)
    c, s = cos[:, None], sin[:, None]
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(1)


def _self_attention(y: Tensor, cos: Tensor, sin: Tensor, weights: Weights, kept: Tensor) -> Tensor:
    q, k = _linear(weights, "self_attn.qk", y).chunk(2, 1)
    v = _linear(weights, "self_attn.v", y)
    q = _rotate(_rms(q, weights["self_attn.norm_q.weight"]), cos, sin)
    k = _rotate(_rms(k, weights["self_attn.norm_k.weight"]), cos, sin)
    proj = weights["self_attn.proj_l.weight"], weights["self_attn.proj_l.bias"]
    return _linear(weights, "self_attn.o", sparse_linear_attention(q, k, v, *proj, kept))


def _cross_attention(z: Tensor, context: Tensor, weights: Weights) -> Tensor:
    q = _rms(_linear(weights, "cross_attn.q", z), weights["cross_attn.norm_q.weight"])
    k, v = _linear(weights, "cross_attn.kv", context.float()).chunk(2, 1)
    k = _rms(k, weights["cross_attn.norm_k.weight"])
    out = torch.empty_like(q)
    for head in range(0, q.shape[1], 128):
        part = slice(head, head + 128)
        out[:, part] = (q[:, part] @ k[:, part].T / 128**0.5).softmax(-1) @ v[:, part]
    return _linear(weights, "cross_attn.o", out)


def _feed_forward(u: Tensor, weights: Weights) -> Tensor:
    rows = [_linear(weights, "ffn.0", part) for part in u.split(_ROWS)]
    return torch.cat([_linear(weights, "ffn.2", F.gelu(part, approximate="tanh")) for part in rows])


def plain_block(
    x: Tensor, context: Tensor, e0: Tensor, cos: Tensor, sin: Tensor, weights: Weights, kept: Tensor
) -> Tensor:
    """x fp32 [L, D] after the block; kept is int64 [H, ⌈L/128⌉, K]. TF32 must be off, as torch has it by default."""
    shift1, scale1, gate1, shift2, scale2, gate2 = weights["modulation"] + e0
    x = x.float()
    x = x + gate1 * _self_attention(_norm(x) * (1 + scale1) + shift1, cos, sin, weights, kept)
    x = x + _cross_attention(_norm(x) * weights["norm3.weight"] + weights["norm3.bias"], context, weights)
    return x + gate2 * _feed_forward(_norm(x) * (1 + scale2) + shift2, weights)
