"""Every published naming of LoRA tensors → the model's tensor that they change, and what they are to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import dropwhile
from typing import Literal, NamedTuple

from exporter.checkpoint.names import diffusers_modules, from_diffusers

Role = Literal["down", "up", "alpha", "difference"]

#: Suffix of a key → the role, and the leaf of the module's tensor that it changes.
#: peft and diffusers: lora_A, lora_B, with an adapter's name between or not; kohya, musubi, Wan, LightX2V: lora_down,
#: lora_up; older diffusers: lora.down; whole differences: diff (weight), diff_b (bias), diff_m (modulation).
_SUFFIXES: tuple[tuple[str, Role, str], ...] = (
    (r"lora_A(?:\.\w+)?\.weight|lora_A|lora_down\.weight|lora\.down\.weight", "down", "weight"),
    (r"lora_B(?:\.\w+)?\.weight|lora_B|lora_up\.weight|lora\.up\.weight", "up", "weight"),
    (r"alpha", "alpha", "weight"),
    (r"diff", "difference", "weight"),
    (r"diff_b", "difference", "bias"),
    (r"diff_m", "difference", "modulation"),
)
#: What trainers and user interfaces put before the model's own names.
_PREFIXES = frozenset(
    {"base_model", "model", "diffusion_model", "net", "transformer", "transformer_2", "unet", "dit", "pipe"}
)
_FLAT_PREFIX = re.compile(r"(?:lora_unet|lora_transformer|lycoris)_+")


class LoraKey(NamedTuple):
    """The model's tensor that a LoRA tensor changes, and its role in that."""

    target: str
    role: Role


def lora_keys(stored: Iterable[str], tensors: Iterable[str]) -> dict[str, LoraKey | None]:
    """Stored key → what it is, None where it matches nothing. ``tensors``: the model's, under canonical names."""
    known = frozenset(tensors)
    flat = _flat_modules(known)
    return {key: _lora_key(key, known, flat) for key in stored}


def _lora_key(key: str, known: frozenset[str], flat: Mapping[str, str]) -> LoraKey | None:
    for suffix, role, leaf in _SUFFIXES:
        if match := re.fullmatch(rf"(?P<module>.+)\.(?:{suffix})", key):
            module = _module(match["module"], flat)
            if module is None:
                return None
            target = module if module in known else f"{module}.{leaf}"  # a modulation is a tensor without a leaf
            return LoraKey(target, role) if target in known else None
    return None


def _module(stored: str, flat: Mapping[str, str]) -> str | None:
    """Wan's name of a module by any of the names that it is given."""
    if flattened := _FLAT_PREFIX.match(stored):
        return flat.get(stored[flattened.end() :])
    bare = ".".join(dropwhile(_PREFIXES.__contains__, stored.split(".")))
    return from_diffusers(f"{bare}.weight").removesuffix(".weight") if bare else None


def _flat_modules(known: frozenset[str]) -> dict[str, str]:
    """Names with underscores in place of dots, Wan's and diffusers' → Wan's module."""
    modules = {name.rpartition(".")[0] for name in known}
    blocks = {match[1] for module in modules if (match := re.match(r"(blocks\.\d+)\.", module))}
    names = {module: module for module in modules}
    names |= {theirs: ours for theirs, ours in diffusers_modules(blocks) if ours in modules}
    return {name.replace(".", "_"): module for name, module in names.items()}
