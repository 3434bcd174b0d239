"""TAEHV's names, under which alone it is published: how it is known, and what of it the decoder has no use for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from exporter.checkpoint.source import TensorMeta

#: The encoder, which makes latents of frames: the VAE's own does that.
OTHERS = re.compile(r"encoder\..+")
_FIRST = "decoder.1.weight"  # the convolution that latents pass first
_BLOCK = re.compile(r"decoder\.(\d+)\.conv\.0\.weight")


def described_tiny(tensors: Mapping[str, TensorMeta]) -> str | None:
    """Which of TAEHV's decoders these tensors are, or None: they differ in latent channels, widths and blocks."""
    first, blocks = tensors.get(_FIRST), [name for name in tensors if _BLOCK.fullmatch(name)]
    if first is None or len(first.shape) != 4 or not blocks:
        return None
    return f"TAEHV of {first.shape[1]} latent channels, width {first.shape[0]} and {len(blocks)} memory blocks"
