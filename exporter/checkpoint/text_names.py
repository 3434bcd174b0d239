"""Names of umT5's tensors: transformers' → Wan's own, and which of Wan's make up a packed one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from exporter.checkpoint.table import Expected
from exporter.networks.text.encoder import TextSpec

_TOP: Mapping[str, str] = {
    "shared": "token_embedding",
    "encoder.embed_tokens": "token_embedding",  # the same tensor under its second name
    "encoder.final_layer_norm": "norm",
}
_BLOCK: Mapping[str, str] = {
    "layer.0.layer_norm": "norm1",
    **{f"layer.0.SelfAttention.{name}": f"attn.{name}" for name in "qkvo"},
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
_PACKED: Mapping[str, tuple[str, ...]] = {
    "attn.qkv": ("attn.q", "attn.k", "attn.v"),
    "ffn.gate_fc1": ("ffn.gate.0", "ffn.fc1"),
}


def text_name(name: str) -> str:
    """Wan's name of one of UMT5EncoderModel's tensors; any other name comes back as it is."""
    module, _, leaf = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{leaf}"
    match = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)", module)
    if match and match[2] in _BLOCK:
        return f"blocks.{match[1]}.{_BLOCK[match[2]]}.{leaf}"
    return name


def text_sources(name: str) -> tuple[str, ...]:
    """The checkpoint's tensors whose rows make up one packed tensor, in order."""
    match = re.fullmatch(r"(blocks\.\d+)\.(.+)\.(\w+)", name)
    if match is None or match[2] not in _PACKED:
        return (name,)
    return tuple(f"{match[1]}.{part}.{match[3]}" for part in _PACKED[match[2]])


def text_expected(spec: TextSpec) -> dict[str, Expected]:
    """Every tensor of an encoder's checkpoint under Wan's names."""
    d, inner, f = spec.dim, spec.heads * spec.head_dim, spec.ffn_dim
    block = {
        "norm1.weight": (d,),
        **{f"attn.{name}.weight": (inner, d) for name in "qkv"},
        "attn.o.weight": (d, inner),
        "norm2.weight": (d,),
        "ffn.gate.0.weight": (f, d),
        "ffn.fc1.weight": (f, d),
        "ffn.fc2.weight": (d, f),
        "pos_embedding.embedding.weight": (spec.buckets, spec.heads),
    }
    tensors = {"token_embedding.weight": Expected((spec.vocabulary, d)), "norm.weight": Expected((d,))}
    for layer in range(spec.layers):
        tensors |= {f"blocks.{layer}.{name}": Expected(shape) for name, shape in block.items()}
    return tensors
