"""The VAE's stages: decoder and encoder, each in halves, the first chunk apart."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from exporter.models import ModelSpec
from exporter.networks.stage_spec import StageSpec, StageTensor, multiple
from exporter.networks.vae import halves
from exporter.networks.vae.frames import to_bytes
from exporter.networks.vae.spec import CHUNK, PIXELS, VaeSpec
from exporter.networks.vae.weights import packed_weights
from runtime.bundle import StageName
from runtime.media.vae.tensors import CACHE, TOTAL

_MIN_SIDE = 2  # latents


def vae_stages(spec: VaeSpec, model: ModelSpec) -> tuple[StageSpec, ...]:
    """The decoder's, and the encoder's where the model takes an image.

    Above the latents' resolution a first chunk has another graph than those that follow: it is a single frame.
    """
    kinds: list[tuple[StageName, halves.Half, bool]] = [
        ("decode_latent", "decode_latent", False),
        ("decode_first", "decode_pixels", True),
        ("decode_next", "decode_pixels", False),
    ]
    if model.image_to_video:
        kinds += [
            ("encode_first", "encode_pixels", True),
            ("encode_next", "encode_pixels", False),
            ("encode_latent", "encode_latent", False),
        ]
    sides = [side // spec.factor for size in model.sizes for side in size]
    # Larger pictures are decoded as tiles of at most this size.
    profile = (_MIN_SIDE, min(model.size) // spec.factor, max(sides))
    return tuple(_vae_stage(spec, name, half, first, profile) for name, half, first in kinds)


def _vae_stage(
    spec: VaeSpec, name: StageName, half: halves.Half, first: bool, profile: tuple[int, int, int]
) -> StageSpec:
    caches = {
        CACHE + key: StageTensor("bf16", (1, cache.channels, cache.frames, *_area(cache.scale)))
        for key, cache in halves.caches(spec, half).items()
    }
    frames = 1 if first else CHUNK
    pixels = StageTensor("fp32", (1, PIXELS, frames, *_area(spec.factor)))
    features, latents = (
        StageTensor("bf16", (1, spec.top, 1, *_area(1))),
        StageTensor("fp32", (1, spec.latent, 1, *_area(1))),
    )
    taken, given = {
        "decode_latent": (latents, features),
        "decode_pixels": (features, StageTensor("uint8", (frames, *_area(spec.factor), PIXELS))),
        "encode_pixels": (pixels, features),
        "encode_latent": (features, latents),
    }[half]
    total = {TOTAL: StageTensor("fp32", (1,))} if half == "decode_pixels" else {}
    return StageSpec(
        name=name,
        component="vae",
        inputs={"chunk": taken, **({} if first else caches)},
        weights=packed_weights(spec, half),
        outputs={"chunk": given, **total, **caches},
        function=partial(_run_half, spec, half, None if first else tuple(halves.caches(spec, half))),
        profile=profile,
    )


def _area(scale: int) -> tuple[str, str]:
    return multiple("H", scale), multiple("W", scale)


def _run_half(
    spec: VaeSpec, half: halves.Half, names: tuple[str, ...] | None, *args: Any, **options: Any
) -> tuple[Tensor, ...]:
    """``options`` are those of ``halves.run``; a trace takes none."""
    x, *before, weights = args
    taken = None if names is None else dict(zip(names, before, strict=True))
    out, kept = halves.run(half, x, taken, weights, spec, **options)
    return (*(to_bytes(out) if half == "decode_pixels" else (out,)), *kept.values())
