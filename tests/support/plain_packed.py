"""The DiT in plain torch from packed weights, with given kept blocks: what the pipeline's steps are held against.

No op, kernel or stage of ours: weights are dequantized and every product is formed in fp32 (TF32 in the GEMMs, whose
error of 2⁻¹¹ is far below the bound). Self-attention is SLA's reference, over the blocks that the kernels kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.networks.dit.weights import BLOCK_LINEARS
from plugins.sage_sla.reference import reference as sla
from runtime.numerics import rope_tables, time_features

Load = Callable[[str], Tensor]  # a tensor of the packed file, on the device


def _linear(load: Load, name: str, x: Tensor, rows: slice = slice(None)) -> Tensor:
    try:
        weight = load(f"{name}.weight").float()
    except KeyError:
        weight = load(f"{name}.int8_weight").float()
        scale = load(f"{name}.scale").repeat_interleave(128, 0).repeat_interleave(128, 1)
        weight *= scale[: weight.shape[0], : weight.shape[1]]
    return F.linear(x, weight[rows], load(f"{name}.bias").float()[rows])


def _block_linear(load: Load, prefix: str, source: str, x: Tensor) -> Tensor:
    """One Linear of the checkpoint: a share of the rows of the packed one that holds it."""
    for packed, sources in BLOCK_LINEARS.items():
        if source in sources:
            bias = load(f"{prefix}.{packed}.bias")
            part, index = bias.shape[0] // len(sources), sources.index(source)
            return _linear(load, f"{prefix}.{packed}", x, slice(index * part, (index + 1) * part))
    raise KeyError(source)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _rms(load: Load, name: str, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * load(f"{name}.weight")


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.view(x.shape[0], -1, 64, 2)
    a, b = pairs.unbind(-1)
    c, s = cos[:, None], sin[:, None]
    return torch.stack((a * c - b * s, a * s + b * c), -1).view(x.shape)


def _cross(load: Load, prefix: str, z: Tensor, context: Tensor) -> Tensor:
    q = _rms(load, f"{prefix}.cross_attn.norm_q", _block_linear(load, prefix, "cross_attn.q", z))
    k = _rms(load, f"{prefix}.cross_attn.norm_k", _block_linear(load, prefix, "cross_attn.k", context))
    v = _block_linear(load, prefix, "cross_attn.v", context)
    heads = [t.view(t.shape[0], -1, 128).transpose(0, 1) for t in (q, k, v)]
    out = torch.cat([(h @ j.mT / 128**0.5).softmax(-1) @ u for h, j, u in zip(*heads, strict=True)], -1)
    return _block_linear(load, prefix, "cross_attn.o", out)


def _block(load: Load, n: int, x: Tensor, context: Tensor, e0: Tensor, rotation: Any, kept: Tensor) -> Tensor:
    p = f"blocks.{n}"
    shift1, scale1, gate1, shift2, scale2, gate2 = load(f"{p}.modulation") + e0
    y = _norm(x) * (1 + scale1) + shift1
    q, k = (
        _rope(_rms(load, f"{p}.self_attn.norm_{i}", _block_linear(load, p, f"self_attn.{i}", y)), *rotation)
        for i in ("q", "k")
    )
    v = _block_linear(load, p, "self_attn.v", y)
    proj = load(f"{p}.self_attn.proj_l.weight"), load(f"{p}.self_attn.proj_l.bias")
    x = x + gate1 * _block_linear(load, p, "self_attn.o", sla(q, k, v, *proj, kept=kept))
    del q, k, v, y
    z = _norm(x) * load(f"{p}.norm3.weight") + load(f"{p}.norm3.bias")
    x = x + _cross(load, p, z, context)
    del z
    u = _norm(x) * (1 + scale2) + shift2
    rows = [F.gelu(_block_linear(load, p, "ffn.0", part), approximate="tanh") for part in u.split(16384)]
    del u
    return x + gate2 * torch.cat([_block_linear(load, p, "ffn.2", part) for part in rows])


def velocity(
    load: Load, tokens: Tensor, t: float, text: Tensor, shape: tuple[int, int, int], kept: Sequence[Tensor]
) -> Tensor:
    """v fp32 [L, 64] of tokens fp32 [L, 64] at t; ``kept`` holds each layer's blocks, integer [H, nq, K]."""
    with torch.no_grad():
        x = _linear(load, "patch_embedding", tokens)
        hidden = F.gelu(_linear(load, "text_embedding.0", text.float()), approximate="tanh")
        context = _linear(load, "text_embedding.2", hidden)
        features = torch.from_numpy(time_features(t)).to(tokens.device)
        e = _linear(load, "time_embedding.2", F.silu(_linear(load, "time_embedding.0", features)))
        e0 = _linear(load, "time_projection.1", F.silu(e)).view(6, -1)
        rotation = tuple(torch.from_numpy(table).to(tokens.device) for table in rope_tables(shape))
        for n, chosen in enumerate(kept):
            x = _block(load, n, x, context, e0, rotation, chosen)
        shift, scale = load("head.modulation") + e
        out = _linear(load, "head.head", _norm(x) * (1 + scale) + shift)
    return out.view(-1, 4, 16).transpose(1, 2).reshape(-1, 64)  # features (kt, kh, kw, c) → (c, kt, kh, kw)
