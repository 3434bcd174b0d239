"""What a checkpoint must hold for a model, and what is wrong with one that does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.checkpoint.source import FLOATS, TensorMeta
from exporter.models import FREQ_DIM, HEAD_DIM, MODELS, OUT_CHANNELS, TEXT_DIM, ModelSpec
from exporter.networks.dit.weights import PROJ_L_SOURCE
from exporter.networks.weight_spec import LinearMode, ceil_div
from plugins.errors import UserError

BLOCK = 128
_LISTED = 20


@dataclass(frozen=True)
class Expected:
    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS

    def __str__(self) -> str:
        return f"{'/'.join(self.dtypes)} {list(self.shape)}"


def _linear(name: str, n: int, k: int, quantized: bool = False) -> dict[str, Expected]:
    bias = {f"{name}.bias": Expected((n,))}
    if not quantized:
        return {f"{name}.weight": Expected((n, k)), **bias}
    return {
        f"{name}.int8_weight": Expected((n, k), ("int8",)),
        f"{name}.scale": Expected((ceil_div(n, BLOCK), ceil_div(k, BLOCK)), ("fp32",)),
        **bias,
    }


def _block(model: ModelSpec, prefix: str, quantized: bool) -> dict[str, Expected]:
    d, f = model.dim, model.ffn_dim
    vector = Expected((d,))
    tensors = {f"{prefix}.modulation": Expected((1, 6, d))}
    for attention in ("self_attn", "cross_attn"):
        for name in "qkvo":
            tensors |= _linear(f"{prefix}.{attention}.{name}", d, d, quantized)
        tensors |= {f"{prefix}.{attention}.norm_{name}.weight": vector for name in "qk"}
    tensors |= _linear(f"{prefix}.{PROJ_L_SOURCE}", HEAD_DIM, HEAD_DIM)
    tensors |= {f"{prefix}.norm3.weight": vector, f"{prefix}.norm3.bias": vector}
    tensors |= _linear(f"{prefix}.ffn.0", f, d, quantized)
    return tensors | _linear(f"{prefix}.ffn.2", d, f, quantized)


def checkpoint_tensors(model: ModelSpec, *, quantized: bool = False) -> dict[str, Expected]:
    """Every tensor of one expert's checkpoint under its canonical name; ``quantized``: the authors' -quant form."""
    d = model.dim
    tensors = {
        **_linear("patch_embedding", d, model.patch_features),
        **_linear("text_embedding.0", d, TEXT_DIM),
        **_linear("text_embedding.2", d, d),
        **_linear("time_embedding.0", d, FREQ_DIM),
        **_linear("time_embedding.2", d, d),
        **_linear("time_projection.1", 6 * d, d),
    }
    for layer in range(model.layers):
        tensors |= _block(model, f"blocks.{layer}", quantized)
    return {**tensors, "head.modulation": Expected((1, 2, d)), **_linear("head.head", OUT_CHANNELS * 4, d)}


def is_quantized(tensors: Mapping[str, TensorMeta]) -> bool:
    return any(name.endswith(".int8_weight") for name in tensors)


def holds_proj_l(tensors: Mapping[str, TensorMeta]) -> bool:
    return any(f".{PROJ_L_SOURCE}." in name for name in tensors)


def problems(model: ModelSpec, tensors: Mapping[str, TensorMeta], *, without_proj_l: bool = False) -> list[str]:
    """One line for every missing, wrong or unexpected tensor; empty if the checkpoint fits."""
    expected = checkpoint_tensors(model, quantized=is_quantized(tensors))
    if without_proj_l:
        expected = {name: want for name, want in expected.items() if f".{PROJ_L_SOURCE}." not in name}
    return differences(expected, tensors)


def differences(expected: Mapping[str, Expected], tensors: Mapping[str, TensorMeta]) -> list[str]:
    """One line for every missing, wrong or unexpected tensor."""
    found = []
    for name, want in expected.items():
        have = tensors.get(name)
        if have is None:
            found.append(f"missing    {name}: {want}")
        elif have.shape != want.shape or have.dtype not in want.dtypes:
            found.append(f"wrong      {name}: {have} in place of {want}")
    return found + [f"unexpected {name}: {meta}" for name, meta in tensors.items() if name not in expected]


def fitting_models(tensors: Mapping[str, TensorMeta]) -> list[str]:
    """The models of the table whose checkpoint this is, proj_l aside."""
    bare = not holds_proj_l(tensors)
    return [model.name for model in MODELS.values() if not problems(model, tensors, without_proj_l=bare)]


def check_linear(checkpoint: object, linear: LinearMode, *, quantized: bool) -> None:
    """Raise UserError where a checkpoint cannot be packed for such Linears."""
    if quantized and linear != "int8":
        raise UserError(
            f"{checkpoint} is a -quant checkpoint: its block Linears are INT8 already.",
            expected="the float checkpoint for --linear bf16",
            remedy="pass the float checkpoint, or --linear int8",
        )


def listing(lines: list[str]) -> str:
    """The first lines, and how many more there are."""
    shown = lines[:_LISTED] + ([f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else [])
    return f"{len(lines)} differences\n" + "\n".join(f"    {line}" for line in shown)
