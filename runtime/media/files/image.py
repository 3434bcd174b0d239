"""An image → the first frame of a video: its size, and pixels in [−1, 1], resized as the authors do."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from runtime.numerics import Array

if TYPE_CHECKING:
    from PIL import Image

_STEP = 16  # pixels: the VAE's 8 times the DiT's patch of 2


def adaptive_size(image_size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of about the target's area at the image's aspect: each side round(ideal / 16) · 16."""
    width, height = image_size
    area, aspect = target[0] * target[1], height / width
    ideal_h, ideal_w = sqrt(area * aspect), sqrt(area / aspect)
    return max(1, round(ideal_w / _STEP)) * _STEP, max(1, round(ideal_h / _STEP)) * _STEP


def first_frame(image: Image.Image, size: tuple[int, int], *, crop: bool = False) -> Array:
    """fp32 [3, h, w] in [−1, 1] of an RGB image brought to ``size`` (width, height).

    Antialiased bilinear; the aspect changes if it must, as in the authors' code. ``crop`` keeps it: the image covers
    the frame and what is over on two sides is cut off.
    """
    from PIL import Image

    box = None
    if crop:
        scale = max(size[0] / image.width, size[1] / image.height)
        w, h = size[0] / scale, size[1] / scale
        left, top = (image.width - w) / 2, (image.height - h) / 2
        box = (left, top, left + w, top + h)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / 127.5 - 1)


def conditioning_chunks(frame: Array, latents: int) -> Iterator[Array]:
    """The video [image, zeros…] in the encoder's chunks, fp32 [3, t, h, w], for a number of latent frames."""
    yield frame[:, None]
    for _ in range(latents - 1):
        yield np.zeros((3, 4, *frame.shape[1:]), np.float32)
