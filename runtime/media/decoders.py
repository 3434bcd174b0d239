"""The decoders of the same latents by the names that callers give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from plugins.errors import UserError
from runtime.bundle import Manifest, MediaComponent
from runtime.checks import export_with

DecoderName = Literal["full", "tiny"]


@dataclass(frozen=True)
class DecoderFacts:
    """What holds a decoder's weights, what a message calls it, and its stages in the order of a video's first chunks.

    ``latent``: the stage that runs for every latent before the others do; None: latents go straight into those.
    """

    component: MediaComponent
    title: str
    latent: str | None
    first: str
    following: str


DECODERS: Mapping[DecoderName, DecoderFacts] = MappingProxyType(
    {
        "full": DecoderFacts("vae", "VAE", "decode_latent", "decode_first", "decode_next"),
        "tiny": DecoderFacts("tiny", "tiny decoder", None, "tiny_first", "tiny_next"),
    }
)


def decoder_named(name: str) -> DecoderName:
    """The decoder of that name. Raises UserError listing them."""
    for known in DECODERS:
        if known == name:
            return known
    raise UserError(f"--vae-decoder {name!r} is not known.", expected=", ".join(DECODERS), got=name)


def check_decoder(manifest: Manifest, name: DecoderName) -> None:
    """Raise UserError where a bundle is without a decoder's weights or stages."""
    facts = DECODERS[name]
    if facts.component not in manifest.media_weights:
        raise UserError(
            f"The bundle has no {facts.title}'s weights.",
            expected="weights for videos and for images",
            remedy=f"{export_with(facts.component)}; latents go to NAME.safetensors",
        )
    manifest.stage(facts.following)
