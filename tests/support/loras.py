"""Random LoRAs in every published form, and an independent merge of what they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.checkpoints import State, diffusers_name

#: Linears of a block that trainings adapt, and one outside the blocks.
TARGETS = (
    *(
        f"blocks.{n}.{module}"
        for n in (0, 1)
        for module in ("self_attn.q", "self_attn.o", "cross_attn.k", "ffn.0", "ffn.2")
    ),
    "time_embedding.0",
    "patch_embedding",
)


class Parts:
    """down, up and alpha for each target; differences by the full name of a tensor."""

    def __init__(self, state: State, rank: int, alpha: float | None, seed: int = 0, differences: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rank, self.alpha = rank, alpha
        self.low = {}
        for target in TARGETS:
            rows, columns = state[f"{target}.weight"].shape
            down = torch.randn(rank, columns, generator=generator) * columns**-0.5
            up = torch.randn(rows, rank, generator=generator) * 0.1 * rank**-0.5
            self.low[target] = (down, up)
        names = ("blocks.0.self_attn.q.bias", "blocks.1.norm3.weight", "blocks.0.self_attn.norm_q.weight")
        self.whole = {name: torch.randn(state[name].shape, generator=generator) * 0.1 for name in names}
        self.whole["blocks.0.modulation"] = torch.randn(state["blocks.0.modulation"].shape, generator=generator) * 0.1
        if not differences:
            self.whole = {}


def _theirs(target: str) -> str:
    return diffusers_name(f"{target}.weight").removesuffix(".weight")


def peft(parts: Parts, prefix: str = "base_model.model.", adapter: str = ".default") -> State:
    """peft's: lora_A, lora_B; alpha is in adapter_config.json."""
    found = {}
    for target, (down, up) in parts.low.items():
        found[f"{prefix}{target}.lora_A{adapter}.weight"] = down
        found[f"{prefix}{target}.lora_B{adapter}.weight"] = up
    return found


def diffusers_form(parts: Parts) -> State:
    """diffusers': its own module names under transformer."""
    found: State = {}
    for target, (down, up) in parts.low.items():
        theirs = _theirs(target)
        found |= {f"transformer.{theirs}.lora_A.weight": down, f"transformer.{theirs}.lora_B.weight": up}
    return found


def dotted(parts: Parts, prefix: str) -> State:
    """Wan's, ComfyUI's and LightX2V's: lora_down, lora_up, alpha, and whole differences."""
    found = {}
    for target, (down, up) in parts.low.items():
        if target == "patch_embedding":  # a Conv3d of 1×2×2 in Wan's own code
            down, up = down.reshape(parts.rank, -1, 1, 2, 2), up.reshape(-1, parts.rank, 1, 1, 1)
        found[f"{prefix}{target}.lora_down.weight"] = down
        found[f"{prefix}{target}.lora_up.weight"] = up
        if parts.alpha is not None:
            found[f"{prefix}{target}.alpha"] = torch.tensor(parts.alpha)
    for name, tensor in parts.whole.items():
        module, _, leaf = name.rpartition(".")
        suffix = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}[leaf]
        found[f"{prefix}{module}.{suffix}"] = tensor
    return found


def kohya(parts: Parts, theirs: bool = False) -> State:
    """kohya's and musubi's: underscores, alpha in a tensor of its own; ``theirs``: diffusers' module names."""
    found: State = {}
    for target, (down, up) in parts.low.items():
        flat = "lora_unet_" + (_theirs(target) if theirs else target).replace(".", "_")
        found |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        if parts.alpha is not None:
            found[f"{flat}.alpha"] = torch.tensor(parts.alpha)
    return found


def merged(state: Mapping[str, torch.Tensor], *added: tuple[Parts, float]) -> State:
    """The state with LoRAs added at their strengths, in float64, rounded once: W + s · alpha/rank · up · down."""
    found = {name: tensor.double() for name, tensor in state.items()}
    for parts, strength in added:
        scale = strength * (1.0 if parts.alpha is None else parts.alpha / parts.rank)
        for target, (down, up) in parts.low.items():
            found[f"{target}.weight"] += scale * torch.einsum("nr,rk->nk", up.double(), down.double())
        for name, tensor in parts.whole.items():
            found[name] += strength * tensor.double()
    return {name: tensor.float() for name, tensor in found.items()}


def write(path: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path
