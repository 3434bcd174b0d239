"""What a caller gives → what the stages take: sizes, text embeddings, and the conditioning of image-to-video."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime import declared
from runtime.bundle import Manifest, ModelFacts
from runtime.numerics import Array, from_bf16_bits, to_bf16_bits, to_tokens
from runtime.video_shape import latents_of, tokens_of

TEXT_DIM = declared.TEXT_DIM
LATENT_CHANNELS, MASK_CHANNELS = declared.LATENT_CHANNELS, 4


def latent_shape(
    manifest: Manifest, size: tuple[int, int] | None = None, frames: int | None = None
) -> tuple[int, int, int]:
    """Latent (T, H, W) of a video of ``size`` (width, height) in pixels, the bundle's default where not given.

    Raises UserError where the engines cannot run it.
    """
    width, height = size or manifest.model.size
    frames = manifest.model.frames if frames is None else frames
    shape = latents_of((width, height), frames)
    profile = manifest.stage("block").profile
    if not profile.min <= tokens_of(shape) <= profile.max:
        raise UserError(
            f"{width}x{height} with {frames} frames is outside what this bundle's engines run.",
            expected=f"L from {profile.min:,} to {profile.max:,}",
            got=f"L = {tokens_of(shape):,}",
            remedy="more pixels or frames"
            if tokens_of(shape) < profile.min
            else f"fewer pixels or frames, or export again with --max-size {width}x{height}x{frames}",
        )
    return shape


def text_bits(embeds: npt.NDArray[Any], model: ModelFacts) -> npt.NDArray[np.uint16]:
    """bf16 bits [512, 4096] of embeddings [n ≤ 512, 4096], zero past the prompt.

    ``embeds`` is fp32 or fp16, or bf16 as ml_dtypes' dtype or as raw bits in uint16. Raises UserError.
    """
    if embeds.ndim != 2 or embeds.shape[1] != TEXT_DIM or not 1 <= embeds.shape[0] <= model.text_length:
        raise UserError(
            "These are not text embeddings of one prompt.",
            expected=f"[n, {TEXT_DIM}] with n from 1 to {model.text_length}",
            got=str(list(embeds.shape)),
        )
    if embeds.dtype.name == "bfloat16":
        embeds = embeds.view(np.uint16)
    if embeds.dtype not in (np.float32, np.float16, np.uint16):
        raise UserError(
            "Text embeddings have another dtype than these.",
            expected="float32, float16, or bf16's bits as uint16",
            got=str(embeds.dtype),
        )
    raw = embeds.dtype == np.uint16
    if not np.isfinite(from_bf16_bits(embeds) if raw else embeds).all():
        raise UserError("The text embeddings hold NaN or infinity.", expected="finite embeddings")
    out = np.zeros((model.text_length, TEXT_DIM), np.uint16)
    out[: len(embeds)] = embeds if raw else to_bf16_bits(embeds)
    return out


def condition_tokens(condition: Array | None, model: ModelFacts, shape: tuple[int, int, int]) -> Array | None:
    """Image-to-video's 20 channels as tokens fp32 [L, 80]: the mask, 1 for latent frame 0, then the given latents.

    ``condition`` is the VAE's latent of [image, zeros…], fp32 [16, T, H, W]. None where the model takes none.
    Raises UserError where it is missing, of another shape, or not wanted.
    """
    channels = model.in_channels - LATENT_CHANNELS
    if channels == 0:
        if condition is not None:
            raise UserError(
                f"{model.name} makes video from text alone: it takes no conditioning latents.", remedy="leave them out"
            )
        return None
    wanted = (channels - MASK_CHANNELS, *shape)
    if condition is None or condition.shape != wanted:
        raise UserError(
            f"{model.name} makes video from an image, given as its latents.",
            expected=f"the VAE's latents of [image, zeros…], {list(wanted)}",
            got="none" if condition is None else str(list(condition.shape)),
        )
    if not np.isfinite(condition).all():
        raise UserError("The conditioning latents hold NaN or infinity.", expected="finite latents")
    mask = np.zeros((MASK_CHANNELS, *shape), np.float32)
    mask[:, 0] = 1
    return to_tokens(np.concatenate([mask, condition.astype(np.float32)]))
