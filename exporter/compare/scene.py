"""What every runner is given: one video's text, noise and times. The same seed gives the same scene as the runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exporter.compare.spec import CompareSpec
from exporter.models import OUT_CHANNELS
from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.inputs import TEXT_DIM, condition_tokens, latent_shape, text_bits
from runtime.numerics import rope_tables, time_features, to_latents
from runtime.sampler import Noise, Step, draws_of, plan_steps
from runtime.tensor_files import read_tensor

_PROMPT = 64  # rows of a made-up text embedding
_MADE_UP = 1  # a Philox stream of its own, so that noise does not depend on whether text was given


@dataclass(frozen=True)
class Scene:
    """Latents of (T, H, W); text bf16 [512, 4096]; condition fp32 [L, 80] or None; ``noise[0]`` starts."""

    shape: tuple[int, int, int]
    text: Tensor
    condition: Tensor | None
    noise: tuple[Tensor, ...]
    steps: tuple[Step, ...]

    @property
    def tokens(self) -> int:
        """L."""
        return int(self.noise[0].shape[0])

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


def scene(manifest: Manifest, spec: CompareSpec) -> Scene:
    """The scene a comparison asks for; a text or an image's latents that are not given are random. Raises UserError."""
    shape = latent_shape(manifest, spec.size, spec.frames)
    steps = plan_steps(manifest, spec.steps, ode=spec.ode)
    if not 0 <= spec.block_step < len(steps):
        raise UserError("There is no such step.", expected=f"--at-step 1 to {len(steps)}", got=str(spec.block_step + 1))
    count = draws_of(steps)
    with Noise(spec.seed, shape, count) as noise:
        drawn = tuple(torch.from_numpy(noise.draw()) for _ in range(count))
    random = np.random.Generator(np.random.Philox(spec.seed + (_MADE_UP << 64)))
    text = random.standard_normal((_PROMPT, TEXT_DIM), dtype=np.float32)
    if spec.embeds is not None:
        text = read_tensor(spec.embeds, "text_embeds")
    latents = None
    if spec.condition is not None:
        latents = read_tensor(spec.condition, "condition")
    elif manifest.model.in_channels > OUT_CHANNELS:
        latents = random.standard_normal((OUT_CHANNELS, *shape), dtype=np.float32)
    condition = condition_tokens(latents, manifest.model, shape)
    return Scene(
        shape,
        torch.from_numpy(text_bits(text, manifest.model).view(np.int16)).view(torch.bfloat16),
        None if condition is None else torch.from_numpy(condition),
        drawn,
        steps,
    )


def frames(tokens: Tensor, shape: tuple[int, int, int]) -> list[Tensor]:
    """Latent frames fp32 [16, H, W] of tokens [L, 64]."""
    latents = torch.from_numpy(to_latents(tokens.cpu().float().numpy(), shape))
    return [frame.contiguous() for frame in latents.unbind(1)]  # Polygraphy's metrics take no others
