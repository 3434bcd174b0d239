"""Host-side mathematics shared by exporter and runtime, in numpy: tokens, rotary tables, time embedding, rCM steps.

Latents are fp32 [C, T, H, W]; the engines see tokens only, fp32 [L, C·4] in t, h, w order with features ordered
(c, kt, kh, kw). The rCM update is elementwise, so the state stays in tokens from the first step to the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_ROPE_PAIRS = (22, 21, 21)  # of a head's 64: by frame, by row, by column
_MID_ANGLES = (1.5, 1.4, 1.0)


def to_tokens(latents: Array) -> Array:
    """Tokens fp32 [T·H/2·W/2, C·4] of latents [C, T, H, W] (patch 1×2×2). Raises ValueError on odd H or W."""
    c, t, h, w = latents.shape
    if h % 2 or w % 2:
        raise ValueError(f"latent height and width must be even, got {h}×{w}")
    patches = latents.reshape(c, t, h // 2, 2, w // 2, 2).transpose(1, 2, 4, 0, 3, 5)
    return np.ascontiguousarray(patches.reshape(-1, c * 4), dtype=np.float32)


def to_latents(tokens: Array, shape: tuple[int, int, int]) -> Array:
    """The inverse of ``to_tokens``: latents fp32 [C, T, H, W] of tokens, where ``shape`` is (T, H, W)."""
    t, h, w = shape
    channels = tokens.shape[1] // 4
    patches = tokens.reshape(t, h // 2, w // 2, channels, 2, 2).transpose(3, 0, 1, 4, 2, 5)
    return np.ascontiguousarray(patches.reshape(channels, t, h, w), dtype=np.float32)


def rope_tables(shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """cos and sin, fp32 [L, 64], for latents of (T, H, W): theta_j = pos / 10000^(2j/n), n = 44, 42, 42."""
    t, h, w = shape[0], shape[1] // 2, shape[2] // 2
    positions = np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij")
    angles = [
        position.reshape(-1, 1) / 10000.0 ** (np.arange(pairs) / pairs)
        for position, pairs in zip(positions, _ROPE_PAIRS, strict=True)
    ]
    theta = np.concatenate(angles, axis=1)
    return np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)


def round_to_bf16(value: float) -> float:
    """The nearest bfloat16, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(np.uint32(rounded).view(np.float32))


def time_features(t: float) -> Array:
    """Sinusoid fp32 [1, 256] of t in [0, 1], passed as t·1000 rounded to bf16: 128 cosines, then 128 sines."""
    angles = round_to_bf16(t * 1000.0) * 10000.0 ** (-np.arange(128) / 128.0)
    return np.concatenate([np.cos(angles), np.sin(angles)])[None].astype(np.float32)


def times(steps: int, sigma_max: float) -> list[float]:
    """The rCM times t, steps + 1 values from near 1 down to 0 (semantics.md, rCM few-step loop)."""
    if not 1 <= steps <= 4:
        raise ValueError(f"steps must be 1 to 4, got {steps}")
    angles = [math.atan(sigma_max), *_MID_ANGLES[: steps - 1], 0.0]
    return [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]


@dataclass(frozen=True)
class Update:
    """x' = a·x + b·v + c·noise."""

    a: float
    b: float
    c: float


def update(t: float, following: float, *, ode: bool = False) -> Update:
    """One step from t to the following time: SDE x' = (1−t')(x − t·v) + t'·noise, ODE x' = x − (t − t')v."""
    if ode:
        return Update(1.0, following - t, 0.0)
    return Update(1.0 - following, -t * (1.0 - following), following)


def to_bf16_bits(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """The nearest bfloat16 of finite values, ties to even, as its bits: numpy has no such dtype."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16_bits(bits: npt.NDArray[np.uint16]) -> Array:
    """fp32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
