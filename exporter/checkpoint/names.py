"""Every published naming of the model's tensors → Wan's own, the canonical one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import dropwhile

from exporter.networks.dit.weights import PROJ_L_SOURCE
from plugins.errors import UserError

#: Names that training code and user interfaces put before a model's own, one or several of them: the authors' training
#: files (net), ComfyUI (model.diffusion_model), Lightning and trainers (model), VAEs' training (first_stage_model).
_PREFIXES = frozenset({"model", "diffusion_model", "net", "first_stage_model"})
#: Names that wrappers put between any two others: torch.compile, activation checkpoints, FSDP, data parallelism.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "module"})
_LEAVES = ("weight", "bias", "int8_weight", "scale")

_DIFFUSERS_MARKS = re.compile(r"(^|\.)(condition_embedder|attn1|attn2|proj_out|scale_shift_table)(\.|$)")
_DIFFUSERS_TOP: Mapping[str, str] = {
    "proj_out": "head.head",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "patch_embedding": "patch_embedding",
}
_DIFFUSERS_BLOCK: Mapping[str, str] = {
    **{
        f"{theirs}.{old}": f"{ours}.{new}"
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for old, new in (
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "o"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
    "attn1.attn_impl.proj_l": PROJ_L_SOURCE,
    "norm2": "norm3",  # diffusers numbers the norms in the order of use
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


def unwrapped(name: str) -> str:
    """A stored name as the model itself has it; no model of ours has a part of one of the names that are dropped."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(dropwhile(_PREFIXES.__contains__, parts))


def from_diffusers(name: str) -> str:
    """Wan's name of a tensor of diffusers' WanTransformer3DModel; a name it does not have comes back as it is."""
    if name == "scale_shift_table":
        return "head.modulation"
    if match := re.fullmatch(r"(blocks\.\d+)\.scale_shift_table", name):
        return f"{match[1]}.modulation"
    module, _, leaf = name.rpartition(".")
    if leaf not in _LEAVES:
        return name
    if module in _DIFFUSERS_TOP:
        return f"{_DIFFUSERS_TOP[module]}.{leaf}"
    match = re.fullmatch(r"(blocks\.\d+)\.(.+)", module)
    if match and match[2] in _DIFFUSERS_BLOCK:
        return f"{match[1]}.{_DIFFUSERS_BLOCK[match[2]]}.{leaf}"
    return name


def diffusers_modules(blocks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(diffusers' name, Wan's name) of every module, for blocks such as "blocks.0"."""
    yield from _DIFFUSERS_TOP.items()
    for block in blocks:
        for theirs, ours in _DIFFUSERS_BLOCK.items():
            yield f"{block}.{theirs}", f"{block}.{ours}"


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name → stored name. Raises UserError where two stored names mean the same tensor."""
    stripped = [(unwrapped(name), name) for name in names]
    diffusers = any(_DIFFUSERS_MARKS.search(name) for name, _ in stripped)
    found: dict[str, str] = {}
    for name, stored in stripped:
        canonical = from_diffusers(name) if diffusers else name
        if canonical in found:
            raise UserError(
                f"The checkpoint holds {canonical} twice.",
                got=f"{found[canonical]} and {stored}",
                remedy="keep one of the two sets of weights (for example without EMA copies)",
            )
        found[canonical] = stored
    return found
