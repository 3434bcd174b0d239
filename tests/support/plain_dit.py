"""The whole DiT forward in plain fp32, written a second time from semantics.md: the tests' end-to-end oracle.

Shares no code with the stages or the ops' references on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.int8_weight" in state:
        weight = state[f"{name}.int8_weight"].float()
        scale = torch.kron(state[f"{name}.scale"].float(), torch.ones(128, 128))
        weight = weight * scale[: weight.shape[0], : weight.shape[1]]
    else:
        weight = state[f"{name}.weight"].float()
    return x @ weight.T + state[f"{name}.bias"].float()


def _layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


def _rms_norm(state: State, name: str, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"].float()


def _heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 128).transpose(0, 1)


def _rotation(frames: int, rows: int, columns: int) -> Tensor:
    """Complex [L, 64]: e^(i·theta) of every token's frame, row and column."""
    out = []
    for f in range(frames):
        for r in range(rows):
            for c in range(columns):
                theta = [p * 10000 ** (-2 * j / n) for p, n in ((f, 44), (r, 42), (c, 42)) for j in range(n // 2)]
                out.append(torch.tensor(theta, dtype=torch.float64))
    angles = torch.stack(out)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(x.shape[0], -1, 64, 2))
    return torch.view_as_real(pairs * rotation[:, None]).reshape(x.shape)


def _sla(state: State, name: str, q: Tensor, k: Tensor, v: Tensor, topk_milli: int) -> Tensor:
    q, k, v = _heads(q), _heads(k), _heads(v)
    pooled_q = torch.stack([part.mean(1) for part in q.split(128, 1)], 1)
    pooled_k = torch.stack([part.mean(1) for part in (k - k.mean(1, keepdim=True)).split(64, 1)], 1)
    ranks = (pooled_q @ pooled_k.mT).argsort(-1, descending=True).argsort(-1)
    kept = ranks < max(1, ranks.shape[-1] * topk_milli // 1000)
    mask = kept.repeat_interleave(128, 1).repeat_interleave(64, 2)[:, : q.shape[1], : k.shape[1]]
    sparse = (q @ k.mT / 128**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    similarity = q.softmax(-1) @ k.softmax(-1).mT  # the linear branch without its reordering
    linear = similarity @ v / (1e-5 + similarity.sum(-1, keepdim=True))
    out = sparse + _linear(state, f"{name}.attn_op.local_attn.proj_l", linear)
    return out.transpose(0, 1).flatten(1)


def _self_attention(state: State, name: str, y: Tensor, rotation: Tensor, topk_milli: int) -> Tensor:
    q, k = (
        _rotate(_rms_norm(state, f"{name}.norm_{x}", _linear(state, f"{name}.{x}", y)), rotation) for x in ("q", "k")
    )
    return _linear(state, f"{name}.o", _sla(state, name, q, k, _linear(state, f"{name}.v", y), topk_milli))


def _cross_attention(state: State, name: str, z: Tensor, context: Tensor) -> Tensor:
    q = _heads(_rms_norm(state, f"{name}.norm_q", _linear(state, f"{name}.q", z)))
    k = _heads(_rms_norm(state, f"{name}.norm_k", _linear(state, f"{name}.k", context)))
    out = (q @ k.mT / 128**0.5).softmax(-1) @ _heads(_linear(state, f"{name}.v", context))
    return _linear(state, f"{name}.o", out.transpose(0, 1).flatten(1))


def velocity(state: State, latents: Tensor, t: float, text: Tensor, *, layers: int, topk_milli: int) -> Tensor:
    """Velocity fp32 [16, T, H, W] of latents [C, T, H, W] at t, from a canonical state dict (float or -quant)."""
    _, frames, height, width = latents.shape
    tokens = F.unfold(latents.float().transpose(0, 1), 2, stride=2).mT.flatten(0, 1)
    x = _linear(state, "patch_embedding", tokens)
    hidden = F.gelu(_linear(state, "text_embedding.0", text.float()), approximate="tanh")
    context = _linear(state, "text_embedding.2", hidden)
    milli = torch.tensor(t * 1000).bfloat16().double()
    angle = torch.stack([milli * 10000 ** (-i / 128) for i in range(128)])
    sinusoid = torch.cat([angle.cos(), angle.sin()]).float()
    e = _linear(state, "time_embedding.2", F.silu(_linear(state, "time_embedding.0", sinusoid)))
    e0 = _linear(state, "time_projection.1", F.silu(e)).view(6, -1)

    rotation = _rotation(frames, height // 2, width // 2)
    for n in range(layers):
        b = f"blocks.{n}"
        shift1, scale1, gate1, shift2, scale2, gate2 = state[f"{b}.modulation"][0].float() + e0
        y = _layer_norm(x) * (1 + scale1) + shift1
        x = x + gate1 * _self_attention(state, f"{b}.self_attn", y, rotation, topk_milli)
        z = _layer_norm(x) * state[f"{b}.norm3.weight"].float() + state[f"{b}.norm3.bias"].float()
        x = x + _cross_attention(state, f"{b}.cross_attn", z, context)
        u = _layer_norm(x) * (1 + scale2) + shift2
        x = x + gate2 * _linear(state, f"{b}.ffn.2", F.gelu(_linear(state, f"{b}.ffn.0", u), approximate="tanh"))

    shift, scale = state["head.modulation"][0].float() + e
    out = _linear(state, "head.head", _layer_norm(x) * (1 + scale) + shift)
    patches = out.view(frames, -1, 4, 16).permute(0, 3, 2, 1).flatten(1, 2)  # features (kh, kw, c) → (c, kh, kw)
    return F.fold(patches, (height, width), 2, stride=2).transpose(0, 1)
