"""A text encoder's packed weights in block-INT8, made from its bf16 ones, and what they compute written out plainly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from exporter.networks.text.encoder import TextSpec, text_weights
from exporter.packing.quantize import block_dequantize, block_quantize

Tensors = dict[str, torch.Tensor]


def quantized(packed: Mapping[str, torch.Tensor], spec: TextSpec) -> Tensors:
    """The tensors of ``text_weights(spec, "int8")`` from those of bf16."""
    made: Tensors = {}
    for name in text_weights(spec, "int8"):
        module, _, leaf = name.rpartition(".")
        if leaf == "int8_weight":
            made[name], made[f"{module}.scale"] = block_quantize(packed[f"{module}.weight"])
        elif leaf != "scale":
            made[name] = packed[name]
    return made


def dequantized(packed: Mapping[str, torch.Tensor]) -> Tensors:
    """A block's INT8 weights as fp32 matrices, under the names of the float ones."""
    made = {}
    for name, tensor in packed.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "int8_weight":
            made[f"{module}.weight"] = block_dequantize(tensor, packed[f"{module}.scale"])
        elif leaf != "scale":
            made[name] = tensor
    return made


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x as its INT8 form holds it: rounded to bf16, then to one scale for each 128 × 128 block."""
    return block_dequantize(*block_quantize(x.bfloat16()))


def plain_block(x: torch.Tensor, buckets: torch.Tensor, weights: Tensors, spec: TextSpec) -> torch.Tensor:
    """umT5's block with INT8 Linears, on dequantized matrices: a second way to write ``text_block``."""

    def linear(y: torch.Tensor, name: str) -> torch.Tensor:
        return (rounded(y) @ weights[f"{name}.weight"].T).bfloat16()

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(y, y.shape[-1:], weights[name], 1e-6)

    length, inner = x.shape[0], spec.heads * spec.head_dim
    qkv = linear(norm(x, "norm1.weight"), "attn.qkv")
    q, k, v = (
        qkv[:, part * inner : (part + 1) * inner].reshape(length, spec.heads, spec.head_dim) for part in range(3)
    )
    scores = torch.einsum("ihd,jhd->hij", q.float(), k.float())
    scores += torch.einsum("ijh->hij", weights["pos_embedding.embedding.weight"][buckets.long()])
    o = torch.einsum("hij,jhd->ihd", scores.softmax(-1).bfloat16().float(), v.float()).bfloat16()
    x = x + linear(o.reshape(length, inner), "attn.o").float()
    both = linear(norm(x, "norm2.weight"), "ffn.gate_fc1").float()
    hidden = F.gelu(both[:, : spec.ffn_dim], approximate="tanh") * both[:, spec.ffn_dim :]
    return x + linear(hidden, "ffn.fc2").float()
