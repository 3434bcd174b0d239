"""The Wan2.1 VAE's latents: what the DiT sees is (mean − MEAN) / STD, channel by channel, as published with Wan2.1."""

from __future__ import annotations

import numpy as np

from runtime.numerics import Array

MEAN = (
    -0.7571,
    -0.7089,
    -0.9113,
    0.1075,
    -0.1745,
    0.9653,
    -0.1517,
    1.5508,
    0.4134,
    -0.0715,
    0.5517,
    -0.3632,
    -0.1922,
    -0.9497,
    0.2503,
    -0.2921,
)
STD = (
    2.8184,
    1.4541,
    2.3275,
    2.6558,
    1.2196,
    1.7708,
    2.6052,
    2.0743,
    3.2687,
    2.1526,
    2.8652,
    1.5579,
    1.6382,
    1.1253,
    2.8251,
    1.9160,
)


def _column(values: tuple[float, ...]) -> Array:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def normalized(mean: Array) -> Array:
    """The DiT's latents fp32 [16, T, H, W] of the encoder's mean."""
    return (mean - _column(MEAN)) / _column(STD)


def denormalized(latents: Array) -> Array:
    """What the decoder takes, of the DiT's latents."""
    return latents * _column(STD) + _column(MEAN)
