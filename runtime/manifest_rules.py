"""What a manifest must say to be a bundle's: it comes from anywhere, and what it says is computed with.

Single numbers are bounded where they are decoded (``runtime.bundle``). Here is what must hold together: the model's
figures with what the runtime computes, each component's stages, and what each of them takes and gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from plugins.dtypes import DTYPES
from runtime.declared import COMPONENT_STAGES, LATENT_CHANNELS, ONE_FILE, Tensors, declared
from runtime.dims import split_dim

if TYPE_CHECKING:
    from runtime.bundle import Manifest, ModelFacts, StageEntry, TensorInfo

HEAD_DIM, TEXT_LENGTH, FREQ_DIM = 128, 512, 256
IN_CHANNELS = (LATENT_CHANNELS, 2 * LATENT_CHANNELS + 4)  # from text; from an image: its latents and a mask besides
MAX_WEIGHT_BYTES = 1 << 40  # of one stage: a slot
MAX_TEXT = 1024
_SYMBOLS: Mapping[str, Sequence[str]] = {"dit": "L", "text": "L", "vae": "HW", "tiny": "HW"}
_DIM = re.compile(r"(?:[1-9]\d{0,3}\*)?[LHW]")


def check_manifest(manifest: Manifest, plain: object) -> None:
    """Raise ValueError for what does not hold together; ``plain``: the manifest as JSON's own types."""
    for text in _texts(plain):
        if not text.isprintable() or len(text) > MAX_TEXT:
            raise ValueError(f"the text {text[:64]!a}")
    _check_model(manifest.model)
    alone, boundary = len(manifest.model.experts) == 1, manifest.sampler.boundary
    if (boundary is None) != alone:
        raise ValueError(f"the boundary {boundary} for the experts {', '.join(manifest.model.experts)}")
    _check_complete(manifest)
    wanted = declared(manifest.model, _width(manifest))
    for stage in manifest.stages:
        _check_tensors(stage)
        if stage.name != ONE_FILE:
            _check_declared(stage, *wanted[stage.name])


def _texts(value: object) -> Iterator[str]:
    """Every text in JSON's types."""
    if isinstance(value, str):
        yield value
    for part in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _check_model(model: ModelFacts) -> None:
    """The figures that the runtime's own arithmetic depends on."""
    facts: dict[str, tuple[Any, bool]] = {
        "dim": (model.dim, model.dim == HEAD_DIM * model.heads),
        "text_length": (model.text_length, model.text_length == TEXT_LENGTH),
        "freq_dim": (model.freq_dim, model.freq_dim == FREQ_DIM),
        "in_channels": (model.in_channels, model.in_channels in IN_CHANNELS),
        "size": (model.size, all(side % 16 == 0 for side in model.size)),
        "frames": (model.frames, model.frames % 4 == 1),
        "experts": (model.experts, len(set(model.experts)) == len(model.experts)),
    }
    for name, (value, right) in facts.items():
        if not right:
            raise ValueError(f"model.{name} cannot be {value}")


def _check_complete(manifest: Manifest) -> None:
    """Every stage once, under its own component, and all stages of a component that has any."""
    have: dict[str, set[str]] = {"dit": set()}
    seen = set()
    for stage in manifest.stages:
        if (stage.name, stage.expert) in seen:
            raise ValueError(f"the stage {stage.name} twice")
        seen.add((stage.name, stage.expert))
        if (stage.expert is not None) != (stage.name == ONE_FILE) or stage.expert not in (
            None,
            *manifest.model.experts,
        ):
            raise ValueError(f"the stage {stage.name} of the expert {stage.expert}")
        if stage.name not in (*COMPONENT_STAGES[stage.component], *([ONE_FILE] if stage.component == "dit" else [])):
            raise ValueError(f"the stage {stage.name} under the component {stage.component}")
        have.setdefault(stage.component, set()).add(stage.name)
    image = manifest.model.in_channels > IN_CHANNELS[0]
    for component, names in have.items():
        needed = [name for name in COMPONENT_STAGES[component] if image or not name.startswith("encode")]
        if missing := [name for name in needed if name not in names]:
            raise ValueError(f"{component} without its stage {missing[0]}")


def _width(manifest: Manifest) -> int:
    """Channels of the VAE's features between its halves, as the decoder states them; 1 where there is no VAE."""
    for stage in manifest.stages:
        if stage.name == "decode_latent" and "chunk" in stage.gives:
            dims = stage.gives["chunk"].dims
            if len(dims) == 5 and isinstance(dims[1], int):
                return dims[1]
    return 1


def _check_tensors(stage: StageEntry) -> None:
    """Names, dtypes and dims that can be computed with; weights of one size, which is bounded."""
    for tensors in (stage.inputs, stage.outputs):
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError(f"two tensors of one name in the stage {stage.name}")
    if len(stage.gives) != len(stage.outputs):
        raise ValueError(f"two outputs of one name in the stage {stage.name}")
    for tensor in (*stage.inputs, *stage.outputs):
        if tensor.dtype not in DTYPES or not all(_is_dim(dim, stage, tensor) for dim in tensor.dims):
            raise ValueError(f"{stage.name}'s {_said(tensor)}")
    total = sum(prod(map(int, tensor.dims)) * DTYPES[tensor.dtype].bytes for tensor in stage.weights)
    if total > MAX_WEIGHT_BYTES:
        raise ValueError(f"{total:,} bytes of weights in the stage {stage.name}")


def _is_dim(dim: int | str, stage: StageEntry, tensor: TensorInfo) -> bool:
    if isinstance(dim, int):
        return True
    return not tensor.weight and bool(_DIM.fullmatch(dim)) and split_dim(dim)[1] in _SYMBOLS[stage.component]


def _check_declared(stage: StageEntry, inputs: Tensors, outputs: Tensors) -> None:
    """The activations are those that the runtime drives a stage with; caches, by their prefix, come as they go."""
    taken = {tensor.name: tensor for tensor in stage.activations}
    for what, wanted, have in (("takes", inputs, taken), ("gives", outputs, stage.gives)):
        found = {name: (t.dtype, t.dims) for name, t in have.items() if not _is_cache(stage, name)}
        if found != wanted:
            other = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))[0]
            raise ValueError(f"{stage.name} {what} {other!a} as {found.get(other)}, not as {wanted.get(other)}")
    caches = [{n: (t.dtype, t.dims) for n, t in have.items() if _is_cache(stage, n)} for have in (taken, stage.gives)]
    if caches[0] != ({} if stage.name.endswith("_first") else caches[1]):
        raise ValueError(f"{stage.name} takes other caches than it gives")


def _is_cache(stage: StageEntry, name: str) -> bool:
    return stage.component in ("vae", "tiny") and name.startswith("cache.")


def _said(tensor: TensorInfo) -> str:
    return f"tensor {tensor.name!a}: {tensor.dtype!a} {ascii(tensor.dims)[:200]}"
