"""What every runner is given: one video's text, noise and times. The same seed gives the same scene as the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from exporter.models import OUT_CHANNELS, TEXT_DIM, TEXT_LENGTH, ModelSpec
from plugins.errors import UserError
from runtime.numerics import Update, rope_tables, time_features, times, to_latents, to_tokens, update

_PROMPT = 64  # rows of a made-up text embedding that are not zero
_TEXT_STREAM = 1  # a Philox stream of its own, so that noise does not depend on whether text was given


@dataclass(frozen=True)
class SceneStep:
    """One rCM step from t to ``following``; x' = update.a·x + update.b·v + update.c·noise."""

    t: float
    following: float
    expert: str
    update: Update


@dataclass(frozen=True)
class Scene:
    """Latents of (T, H, W); text bf16 [512, 4096]; condition fp32 [L, 80] or None; ``noise[0]`` starts."""

    shape: tuple[int, int, int]
    text: Tensor
    condition: Tensor | None
    noise: tuple[Tensor, ...]
    steps: tuple[SceneStep, ...]

    @property
    def start(self) -> Tensor:
        """Tokens fp32 [L, 64] before the first step."""
        return self.noise[0] * self.steps[0].t

    def noise_of(self, step: int) -> Tensor:
        """Fresh noise of a step; unused where its ``update.c`` is 0."""
        return self.noise[min(step + 1, len(self.noise) - 1)]

    def tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [L, 64]."""
        cos, sin = rope_tables(self.shape)
        return torch.from_numpy(cos), torch.from_numpy(sin)

    def time_features(self, step: int) -> Tensor:
        return torch.from_numpy(time_features(self.steps[step].t))


def scene(
    model: ModelSpec,
    *,
    size: tuple[int, int],
    frames: int,
    steps: int,
    seed: int,
    sigma_max: float,
    text: Tensor | None = None,
) -> Scene:
    """A scene with noise by seed; the text, where none is given, and an image's condition are random too. UserError."""
    if not 1 <= steps <= 4:
        raise UserError("This number of steps is not trained.", expected="1 to 4", got=str(steps))
    shape = model.latent_shape(size, frames)
    random = np.random.Generator(np.random.Philox(seed))
    draws = [_normal(random, (OUT_CHANNELS, *shape)) for _ in range(max(steps, 1))]
    at = times(steps, sigma_max)
    made = np.random.Generator(np.random.Philox(seed + (_TEXT_STREAM << 64)))
    if text is None:
        rows = made.standard_normal((TEXT_LENGTH, TEXT_DIM), dtype=np.float32)
        rows[_PROMPT:] = 0
        text = torch.from_numpy(rows)
    condition = _condition(made, model, shape) if model.image_to_video else None
    experts, boundary = model.experts, model.boundary
    return Scene(
        shape,
        text.bfloat16(),
        condition,
        tuple(draws),
        tuple(
            SceneStep(t, after, experts[-1 if boundary is not None and t < boundary else 0], update(t, after))
            for t, after in pairwise(at)
        ),
    )


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(to_tokens(random.standard_normal(shape, dtype=np.float32)))


def _condition(random: np.random.Generator, model: ModelSpec, shape: tuple[int, int, int]) -> Tensor:
    """Mask (1 in the first latent frame) and image latents of Wan2.2's 20 extra channels, as tokens."""
    channels = model.in_channels - OUT_CHANNELS
    latents = random.standard_normal((channels, *shape), dtype=np.float32)
    mask = channels - OUT_CHANNELS
    latents[:mask] = 0
    latents[:mask, 0] = 1
    return torch.from_numpy(to_tokens(latents))


def frames(tokens: Tensor, shape: tuple[int, int, int]) -> list[Tensor]:
    """Latent frames fp32 [16, H, W] of tokens [L, 64]."""
    latents = torch.from_numpy(to_latents(tokens.cpu().float().numpy(), shape))
    return [frame.contiguous() for frame in latents.unbind(1)]  # Polygraphy's metrics take no others
