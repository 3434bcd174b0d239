"""What the packed weights file holds: one table of tensors per stage, shared by the packer, the tracer and the engines.

A packed file names tensors as Wan does, with three differences: q and k are one matrix (cross-attention: k and v),
a quantized Linear holds ``int8_weight`` and ``scale`` in place of ``weight``, and proj_l lies directly under self_attn.
Matrices that are not quantized are bf16 (the dtype the authors run them in; products with the time MLP and the head
are still formed in fp32); vectors, which cost nothing, are fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from exporter.models import FREQ_DIM, HEAD_DIM, OUT_CHANNELS, TEXT_DIM, ModelSpec
from exporter.networks.weight_spec import LinearMode, WeightSpec, ceil_div

Stage = Literal["embed", "block", "head"]
FORMAT_VERSION = "1"  # of packed files

# One packed Linear: the checkpoint's Linears whose rows it concatenates, in order.
BLOCK_LINEARS: Mapping[str, tuple[str, ...]] = {
    "self_attn.qk": ("self_attn.q", "self_attn.k"),
    "self_attn.v": ("self_attn.v",),
    "self_attn.o": ("self_attn.o",),
    "cross_attn.q": ("cross_attn.q",),
    "cross_attn.kv": ("cross_attn.k", "cross_attn.v"),
    "cross_attn.o": ("cross_attn.o",),
    "ffn.0": ("ffn.0",),
    "ffn.2": ("ffn.2",),
}
PROJ_L_SOURCE = "self_attn.attn_op.local_attn.proj_l"


def block_linear_shapes(model: ModelSpec) -> dict[str, tuple[int, int]]:
    """(N, K) of every packed Linear of a block."""
    d, f = model.dim, model.ffn_dim
    return {
        "self_attn.qk": (2 * d, d),
        "self_attn.v": (d, d),
        "self_attn.o": (d, d),
        "cross_attn.q": (d, d),
        "cross_attn.kv": (2 * d, d),
        "cross_attn.o": (d, d),
        "ffn.0": (f, d),
        "ffn.2": (d, f),
    }


def _linear(n: int, k: int, dtype: str) -> dict[str, WeightSpec]:
    return {"weight": WeightSpec((n, k), dtype), "bias": WeightSpec((n,), "fp32")}


def _int8_linear(n: int, k: int) -> dict[str, WeightSpec]:
    return {
        "int8_weight": WeightSpec((n, k), "int8"),
        "scale": WeightSpec((ceil_div(n, 128), ceil_div(k, 128)), "fp32"),
        "bias": WeightSpec((n,), "fp32"),
    }


def _named(prefix: str, tensors: Mapping[str, WeightSpec]) -> dict[str, WeightSpec]:
    return {f"{prefix}.{name}": spec for name, spec in tensors.items()}


def _embed(model: ModelSpec) -> dict[str, WeightSpec]:
    d = model.dim
    return {
        **_named("patch_embedding", _linear(d, model.patch_features, "bf16")),
        **_named("text_embedding.0", _linear(d, TEXT_DIM, "bf16")),
        **_named("text_embedding.2", _linear(d, d, "bf16")),
        **_named("time_embedding.0", _linear(d, FREQ_DIM, "bf16")),
        **_named("time_embedding.2", _linear(d, d, "bf16")),
        **_named("time_projection.1", _linear(6 * d, d, "bf16")),
    }


def _block(model: ModelSpec, linear: LinearMode) -> dict[str, WeightSpec]:
    d = model.dim
    vector = WeightSpec((d,), "fp32")
    tensors: dict[str, WeightSpec] = {"modulation": WeightSpec((6, d), "fp32")}
    for name, (n, k) in block_linear_shapes(model).items():
        tensors |= _named(name, _int8_linear(n, k) if linear == "int8" else _linear(n, k, "bf16"))
    for attention in ("self_attn", "cross_attn"):
        tensors |= {f"{attention}.norm_q.weight": vector, f"{attention}.norm_k.weight": vector}
    tensors |= _named("self_attn.proj_l", _linear(HEAD_DIM, HEAD_DIM, "fp32"))
    tensors |= {"norm3.weight": vector, "norm3.bias": vector}
    return tensors


def _head(model: ModelSpec) -> dict[str, WeightSpec]:
    d = model.dim
    return {"head.modulation": WeightSpec((2, d), "fp32"), **_named("head.head", _linear(OUT_CHANNELS * 4, d, "fp32"))}


def stage_weights(model: ModelSpec, stage: Stage, linear: LinearMode = "int8") -> dict[str, WeightSpec]:
    """The weights one stage takes as inputs, by name; a block's names carry no ``blocks.N.`` prefix."""
    return {"embed": lambda: _embed(model), "block": lambda: _block(model, linear), "head": lambda: _head(model)}[
        stage
    ]()


def packed_tensors(model: ModelSpec, linear: LinearMode = "int8") -> dict[str, WeightSpec]:
    """Every tensor of the packed file of one expert, in the order in which the stages need them."""
    tensors = stage_weights(model, "embed", linear)
    for layer in range(model.layers):
        tensors |= _named(f"blocks.{layer}", stage_weights(model, "block", linear))
    return tensors | stage_weights(model, "head", linear)


def packed_metadata(model: ModelSpec, linear: LinearMode, *, has_proj_l: bool = True) -> dict[str, str]:
    """What the header of a packed file says of it."""
    return {
        "format_version": FORMAT_VERSION,
        "model": model.name,
        "linear": linear,
        "has_proj_l": "true" if has_proj_l else "false",
    }


def packed_bytes(model: ModelSpec, linear: LinearMode = "int8") -> int:
    """Size in bytes of the packed weights of one expert."""
    item = {"int8": 1, "bf16": 2, "fp32": 4}
    total = 0
    for spec in packed_tensors(model, linear).values():
        count = 1
        for dim in spec.shape:
            count *= dim
        total += count * item[spec.dtype]
    return total
