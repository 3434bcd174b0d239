"""The components of a bundle and their stages: the DiT, the text encoder, the VAE. One table, one way to export."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from torch import Tensor

from exporter.models import ModelSpec
from exporter.stage_spec import Component, StageInput, StageSpec, multiple
from exporter.stages import BlockOptions
from exporter.text_encoder import TEXT_ENCODERS, TextSpec, block_weights, norm_weights, text_block, text_norm
from exporter.trace import dit_stage
from exporter.vae import halves
from exporter.vae.frames import to_bytes
from exporter.vae.layers import Weights
from exporter.vae.spec import CHUNK, PIXELS, VAES, VaeSpec
from exporter.vae.weights import packed_weights
from exporter.weights import LinearMode, Stage
from runtime.media_layout import CACHE, TOTAL

DIT_STAGES: tuple[Stage, ...] = get_args(Stage)
_TEXT_PROFILE = (2, 64, 512)  # tokens of a prompt: a word and the end mark, a usual prompt, the most
_MIN_SIDE = 2  # latents


def component_stages(
    model: ModelSpec, component: Component, options: BlockOptions, text_linear: LinearMode = "bf16"
) -> tuple[StageSpec, ...]:
    """A component's stages in the order in which they first run."""
    if component == "dit":
        return tuple(dit_stage(model, stage, options) for stage in DIT_STAGES)
    if component == "text":
        return text_stages(TEXT_ENCODERS[model.text_encoder], text_linear)
    return vae_stages(VAES[model.vae], model)


def text_stages(spec: TextSpec, linear: LinearMode = "bf16") -> tuple[StageSpec, ...]:
    """The encoder's block, run once for each layer, and its norm. The embedding is looked up on the host."""
    x = StageInput("fp32", ("L", spec.dim))
    buckets = StageInput("int32", ("L", "L"))

    def block(x: Tensor, buckets: Tensor, weights: Weights) -> Tensor:
        return text_block(x, buckets, weights, spec, linear)

    return (
        StageSpec("text_block", "text", {"x": x, "buckets": buckets}, block_weights(spec, linear),
                  ("x",), block, _TEXT_PROFILE),
        StageSpec("text_norm", "text", {"x": x}, norm_weights(spec), ("embeds",), text_norm, _TEXT_PROFILE),
    )  # fmt: skip


def vae_stages(spec: VaeSpec, model: ModelSpec) -> tuple[StageSpec, ...]:
    """The decoder's, and the encoder's where the model takes an image.

    Above the latents' resolution a first chunk has another graph than those that follow: it is a single frame.
    """
    kinds: list[tuple[str, halves.Half, bool]] = [
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


def _vae_stage(spec: VaeSpec, name: str, half: halves.Half, first: bool, profile: tuple[int, int, int]) -> StageSpec:
    caches = {CACHE + key: cache for key, cache in halves.caches(spec, half).items()}
    cache_inputs = {
        key: StageInput("bf16", (1, cache.channels, cache.frames, *_area(cache.scale))) for key, cache in caches.items()
    }
    frames = 1 if first else CHUNK
    pixels = {"fp32": (1, PIXELS, frames, *_area(spec.factor))}
    features, latents = {"bf16": (1, spec.top, 1, *_area(1))}, {"fp32": (1, spec.latent, 1, *_area(1))}
    takes, (gives,) = {
        "decode_latent": (latents, features.values()),
        "decode_pixels": (features, [(frames, *_area(spec.factor), PIXELS)]),
        "encode_pixels": (pixels, features.values()),
        "encode_latent": (features, latents.values()),
    }[half]
    ((dtype, dims),) = takes.items()
    total = {TOTAL: (1,)} if half == "decode_pixels" else {}
    return StageSpec(
        name=name,
        component="vae",
        inputs={"chunk": StageInput(dtype, dims), **({} if first else cache_inputs)},
        weights=packed_weights(spec, half),
        outputs=("chunk", *total, *caches),
        function=partial(_run_half, spec, half, None if first else tuple(halves.caches(spec, half))),
        profile=profile,
        output_dims=(gives, *total.values(), *(cache.dims for cache in cache_inputs.values())),
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
