"""umT5's encoder as functions of tensors: rows of the embedding → block × N → norm. Batch is 1.

The embedding is a lookup of a few rows in 2 GB: the host does it. Only the prompt's own tokens are computed, so there
is no mask; what the published code computes for the padding is thrown away there too. Products are in the weights'
dtype (fp16 overflows in this model) or W8A8 by our ops; the residual, norms, scores and softmax are in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.models import EPS, TEXT_DIM
from exporter.networks.weight_spec import LinearMode, WeightSpec, ceil_div
from plugins.torch_op import call

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class TextSpec:
    """One umT5 encoder. ``head_dim`` is not dim / heads in general."""

    name: str
    dim: int
    layers: int
    ffn_dim: int
    heads: int
    head_dim: int
    vocabulary: int
    buckets: int = 32


_UMT5_XXL = TextSpec(name="umt5-xxl", dim=TEXT_DIM, layers=24, ffn_dim=10240, heads=64, head_dim=64, vocabulary=256384)
_UMT5_TINY = TextSpec(name="umt5-tiny", dim=TEXT_DIM, layers=2, ffn_dim=128, heads=2, head_dim=64, vocabulary=384)

TEXT_ENCODERS: Mapping[str, TextSpec] = MappingProxyType({spec.name: spec for spec in (_UMT5_XXL, _UMT5_TINY)})


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def _linear_float(x: Tensor, weights: Weights, name: str) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.linear(x.to(weight.dtype), weight)


def _linear_int8(x: Tensor, weights: Weights, name: str) -> Tensor:
    # Not the op with the residual: that one is bf16 there, and umT5's grows past what bf16 can add to.
    # Nor the one with the GELU: umT5 multiplies it with its linear half before anything is quantized.
    weight, scale = weights[f"{name}.int8_weight"], weights[f"{name}.scale"]
    no_bias = torch.zeros(weight.shape[0], device=x.device)  # the op adds one, umT5's Linears have none
    return call("BlockInt8Gemm", *call("BlockInt8Quantize", x.bfloat16()), weight, scale, no_bias)


_LINEARS: Mapping[LinearMode, Callable[[Tensor, Weights, str], Tensor]] = MappingProxyType(
    {"bf16": _linear_float, "int8": _linear_int8}
)


def text_block(x: Tensor, buckets: Tensor, weights: Weights, spec: TextSpec, linear: LinearMode = "bf16") -> Tensor:
    """One block: x fp32 [L, D], buckets int32 [L, L] → x. ``linear``: how its four Linears are computed.

    x += o(softmax(q·kᵀ + bias)·v) without a scale, on norm1(x); x += fc2(gelu_tanh(gate(u))·fc1(u)), u = norm2(x).
    """
    heads, project = spec.heads, _LINEARS[linear]
    y = project(_rms_norm(x, weights["norm1.weight"]), weights, "attn.qkv")
    q, k, v = y.reshape(-1, 3, heads, spec.head_dim).permute(1, 2, 0, 3).unbind(0)
    bias = F.embedding(buckets, weights["pos_embedding.embedding.weight"]).permute(2, 0, 1)
    scores = q.float() @ k.float().transpose(1, 2) + bias
    y = scores.softmax(-1).to(v.dtype) @ v
    x = x + project(y.transpose(0, 1).reshape(-1, heads * spec.head_dim), weights, "attn.o").float()
    gate, up = project(_rms_norm(x, weights["norm2.weight"]), weights, "ffn.gate_fc1").chunk(2, 1)
    hidden = F.gelu(gate.float(), approximate="tanh") * up.float()
    return x + project(hidden, weights, "ffn.fc2").float()


def text_norm(x: Tensor, weights: Weights) -> Tensor:
    """The last norm: x fp32 [L, D] → bf16 [L, D], what the DiT takes."""
    return _rms_norm(x, weights["norm.weight"]).bfloat16()


def _matrix(name: str, n: int, k: int, linear: LinearMode) -> dict[str, WeightSpec]:
    if linear == "bf16":
        return {f"{name}.weight": WeightSpec((n, k), "bf16")}
    scales = WeightSpec((ceil_div(n, 128), ceil_div(k, 128)), "fp32")
    return {f"{name}.int8_weight": WeightSpec((n, k), "int8"), f"{name}.scale": scales}


def block_weights(spec: TextSpec, linear: LinearMode = "bf16") -> dict[str, WeightSpec]:
    """A block's packed weights: q, k, v are one matrix, and so are the gate and the linear half of the feed-forward."""
    d, inner, f = spec.dim, spec.heads * spec.head_dim, spec.ffn_dim
    return {
        "norm1.weight": WeightSpec((d,), "fp32"),
        **_matrix("attn.qkv", 3 * inner, d, linear),
        **_matrix("attn.o", d, inner, linear),
        "pos_embedding.embedding.weight": WeightSpec((spec.buckets, spec.heads), "fp32"),
        "norm2.weight": WeightSpec((d,), "fp32"),
        **_matrix("ffn.gate_fc1", 2 * f, d, linear),
        **_matrix("ffn.fc2", d, f, linear),
    }


def norm_weights(spec: TextSpec) -> dict[str, WeightSpec]:
    """The last norm's."""
    return {"norm.weight": WeightSpec((spec.dim,), "fp32")}


def text_weights(spec: TextSpec, linear: LinearMode = "bf16") -> dict[str, WeightSpec]:
    """Every tensor of the packed file: the embedding, which stays on the host, then block by block, then the norm."""
    tensors = {"token_embedding.weight": WeightSpec((spec.vocabulary, spec.dim), "bf16")}
    for layer in range(spec.layers):
        tensors |= {f"blocks.{layer}.{name}": weight for name, weight in block_weights(spec, linear).items()}
    return tensors | norm_weights(spec)
