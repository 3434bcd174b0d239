"""The DiT as three functions of tensors: embed → block × N → head (semantics.md, DiT forward). Batch is 1.

Weights are a mapping by the names of ``exporter.networks.dit.weights.stage_weights``; everything L-sized in the INT8
block goes through our ops. The same functions are traced to ONNX, run on CPU through the references, and run on CUDA
through the compiled plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.networks.dit.options import DENSE, BlockOptions
from plugins.torch_op import call

Weights = Mapping[str, Tensor]


def _linear_fp32(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.linear(x.float(), weights[f"{name}.weight"].float(), weights[f"{name}.bias"])


def _linear_bf16(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.linear(x.bfloat16(), weights[f"{name}.weight"].bfloat16()) + weights[f"{name}.bias"].bfloat16()


def embed(
    tokens: Tensor, time_features: Tensor, text: Tensor, weights: Weights, condition: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens and conditions → the blocks' inputs.

    tokens fp32 [L, 64], time_features fp32 [1, 256], text bf16 [512, 4096], condition fp32 [L, 80] for image-to-video.
    Returns x bf16 [L, D], context bf16 [512, D], e fp32 [1, D], e0 fp32 [6, D].
    """
    if condition is not None:
        tokens = torch.cat((tokens, condition), 1)
    x = _linear_bf16(tokens, weights, "patch_embedding")
    hidden = F.gelu(_linear_bf16(text, weights, "text_embedding.0"), approximate="tanh")
    context = _linear_bf16(hidden, weights, "text_embedding.2")
    e = _linear_fp32(F.silu(_linear_fp32(time_features, weights, "time_embedding.0")), weights, "time_embedding.2")
    e0 = _linear_fp32(F.silu(e), weights, "time_projection.1")
    return x, context, e, e0.reshape(6, e.shape[1])


def _attend(q: Tensor, k: Tensor, v: Tensor, weights: Weights, options: BlockOptions, suffix: str = "") -> Any:
    """Self-attention; with suffix "Quantize" its output is INT8 with scales."""
    precision = "int8" if options.attention in ("sagesla", "sage") else "bf16"
    if options.attention in DENSE:
        return call(f"SageAttention{suffix}", q, k, v, precision=precision)
    proj = (weights["self_attn.proj_l.weight"], weights["self_attn.proj_l.bias"])
    return call(f"SageSLA{suffix}", q, k, v, *proj, topk_milli=options.topk_milli, precision=precision)


def block(
    x: Tensor, context: Tensor, e0: Tensor, cos: Tensor, sin: Tensor, weights: Weights, options: BlockOptions
) -> Tensor:
    """One transformer block: x bf16 [L, D], context bf16 [512, D], e0 fp32 [6, D], cos and sin fp32 [L, 64] → x."""
    run = _block_int8 if options.linear == "int8" else _block_bf16
    return run(x, context, weights["modulation"] + e0, cos, sin, weights, options)


def _operands(weights: Weights, name: str) -> tuple[Tensor, ...]:
    return tuple(weights[f"{name}.{part}"] for part in ("int8_weight", "scale", "bias"))


def _norms(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.norm_q.weight"], weights[f"{name}.norm_k.weight"]


def _block_int8(
    x: Tensor, context: Tensor, m: Tensor, cos: Tensor, sin: Tensor, weights: Weights, options: BlockOptions
) -> Tensor:
    # Three functions, so that run eagerly each frees its tensors at its end, as an engine does.
    x = _self_attention_int8(x, m, cos, sin, weights, options)
    x = _cross_attention_int8(x, context, weights)
    hidden = call("BlockInt8GemmGelu", *call("LayerNormQuantize", x, 1 + m[4], m[3]), *_operands(weights, "ffn.0"))
    return call("BlockInt8GemmResidual", *hidden, *_operands(weights, "ffn.2"), m[5], x)


def _self_attention_int8(
    x: Tensor, m: Tensor, cos: Tensor, sin: Tensor, weights: Weights, options: BlockOptions
) -> Tensor:
    y = call("LayerNormQuantize", x, 1 + m[1], m[0])
    # v's projection comes after q and k are normalized: their raw [L, 2D] is gone by then, and the peak is lower.
    qk = call("BlockInt8Gemm", *y, *_operands(weights, "self_attn.qk"))
    q, k = call("QkNormRope", qk, *_norms(weights, "self_attn"), cos, sin)
    del qk
    v = call("BlockInt8Gemm", *y, *_operands(weights, "self_attn.v"))
    del y
    o = _attend(q, k, v, weights, options, "Quantize")
    del q, k, v
    return call("BlockInt8GemmResidual", *o, *_operands(weights, "self_attn.o"), m[2], x)


def _cross_attention_int8(x: Tensor, context: Tensor, weights: Weights) -> Tensor:
    norm_q, norm_k = _norms(weights, "cross_attn")
    z = call("LayerNormQuantize", x, weights["norm3.weight"], weights["norm3.bias"])
    q = call("RmsNorm", call("BlockInt8Gemm", *z, *_operands(weights, "cross_attn.q")), norm_q)
    kv = call("BlockInt8Gemm", *call("BlockInt8Quantize", context), *_operands(weights, "cross_attn.kv"))
    o = call("SageAttentionQuantize", q, call("RmsNorm", kv, norm_k), kv, precision="bf16")
    gate = torch.ones_like(weights["norm3.weight"])
    return call("BlockInt8GemmResidual", *o, *_operands(weights, "cross_attn.o"), gate, x)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * weight + bias).bfloat16()


def _block_bf16(
    x: Tensor, context: Tensor, m: Tensor, cos: Tensor, sin: Tensor, weights: Weights, options: BlockOptions
) -> Tensor:
    def gated(x: Tensor, gate: Tensor | float, y: Tensor) -> Tensor:
        return (x.float() + gate * y.float()).bfloat16()

    y = _layer_norm(x, 1 + m[1], m[0])
    q, k = call("QkNormRope", _linear_bf16(y, weights, "self_attn.qk"), *_norms(weights, "self_attn"), cos, sin)
    o = _attend(q, k, _linear_bf16(y, weights, "self_attn.v"), weights, options)
    x = gated(x, m[2], _linear_bf16(o, weights, "self_attn.o"))

    z = _layer_norm(x, weights["norm3.weight"], weights["norm3.bias"])
    q = call("RmsNorm", _linear_bf16(z, weights, "cross_attn.q"), weights["cross_attn.norm_q.weight"])
    kv = _linear_bf16(context, weights, "cross_attn.kv")
    k = call("RmsNorm", kv, weights["cross_attn.norm_k.weight"])
    o = call("SageAttention", q, k, kv, precision="bf16")
    x = gated(x, 1.0, _linear_bf16(o, weights, "cross_attn.o"))

    u = _layer_norm(x, 1 + m[4], m[3])
    hidden = F.gelu(_linear_bf16(u, weights, "ffn.0"), approximate="tanh")
    return gated(x, m[5], _linear_bf16(hidden, weights, "ffn.2"))


def head(
    x: Tensor, e: Tensor, tokens: Tensor, noise: Tensor, a: Tensor, b: Tensor, c: Tensor, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Last norm, projection and the rCM update x' = a·tokens + b·v + c·noise.

    x bf16 [L, D], e fp32 [1, D], tokens and noise fp32 [L, 64], a, b, c fp32 [1]. Returns x' and v, fp32 [L, 64] with
    features ordered (c, kt, kh, kw) as the tokens are; the projection's own order is (kt, kh, kw, c).
    """
    shift, scale = (weights["head.modulation"] + e).unbind(0)
    y = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    v = _linear_fp32(y, weights, "head.head")
    v = v.reshape(-1, 4, 16).transpose(1, 2).reshape(-1, 64)
    return a * tokens + b * v + c * noise, v
