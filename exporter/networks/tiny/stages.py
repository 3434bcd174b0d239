"""The tiny decoder's stages: the first chunk, which is one frame, and those that follow, of four."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from exporter.models import ModelSpec
from exporter.networks.stage_spec import StageSpec, StageTensor, multiple
from exporter.networks.tiny.decoder import decode
from exporter.networks.tiny.spec import TinySpec, tiny_weights
from exporter.networks.vae.spec import CHUNK, PIXELS
from runtime.bundle import StageName
from runtime.media.vae.tensors import CACHE, TOTAL

_MIN_SIDE = 2  # latents


def tiny_stages(spec: TinySpec, model: ModelSpec) -> tuple[StageSpec, ...]:
    """Larger pictures than the model's sizes are decoded as tiles of at most their largest side."""
    sides = [side // spec.factor for size in model.sizes for side in size]
    profile = (_MIN_SIDE, min(model.size) // spec.factor, max(sides))
    names: tuple[StageName, StageName] = ("tiny_first", "tiny_next")
    return tuple(_stage(spec, name, profile, first=name == "tiny_first") for name in names)


def memories(spec: TinySpec) -> dict[str, StageTensor]:
    """What each memory block hands to the next chunk, by its name: the last frame that it saw."""
    return {
        block: StageTensor("fp16", (1, level.width, multiple("H", level.scale), multiple("W", level.scale)))
        for level in spec.levels
        for block in level.blocks
    }


def _stage(spec: TinySpec, name: StageName, profile: tuple[int, int, int], *, first: bool) -> StageSpec:
    kept = memories(spec)
    caches = {CACHE + block: tensor for block, tensor in kept.items()}
    frames = 1 if first else CHUNK
    area = multiple("H", spec.factor), multiple("W", spec.factor)
    return StageSpec(
        name=name,
        component="tiny",
        inputs={"chunk": StageTensor("fp32", (1, spec.latent, 1, "H", "W")), **({} if first else caches)},
        weights=tiny_weights(spec),
        outputs={
            "chunk": StageTensor("uint8", (frames, *area, PIXELS)),
            TOTAL: StageTensor("fp32", (1,)),
            **caches,
        },
        function=partial(_run, spec, None if first else tuple(kept)),
        profile=profile,
    )


def _run(spec: TinySpec, names: tuple[str, ...] | None, *args: Any, **options: Any) -> tuple[Tensor, ...]:
    """``options`` are those of ``decode``; a trace takes none."""
    z, *before, weights = args
    taken = None if names is None else dict(zip(names, before, strict=True))
    pixels, kept = decode(z, taken, weights, spec, **options)
    # Moved first: on a GPU's channels-last memory the frames lie so already, and rounding writes bytes in order.
    pixels = pixels.permute(0, 2, 3, 1).float()
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8), pixels.sum().reshape(1), *kept.values()
