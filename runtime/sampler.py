"""The rCM few-step loop (semantics.md): pure, on host tokens; the DiT and the update are one function given to it.

Noise is numpy's Philox by seed, standard normal fp32 in the order of latents [16, T, H, W]: the first draw is the
initial state, each SDE step with t' > 0 draws once more. Every backend thus gets the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.numerics import Array, Update, from_bf16_bits, times, to_tokens, update

MAX_STEPS = 4
CHANNELS = 16


@dataclass(frozen=True)
class Step:
    """One step of the loop: from time t to ``following`` with one expert; ``index`` counts from 0."""

    index: int
    t: float
    following: float
    expert: str
    update: Update


#: (tokens, step, noise) → tokens of the following time; all fp32 [L, 64] on the host.
Forward = Callable[[Array, Step, Array], Array]
#: Called after each step with the step and its tokens.
AfterStep = Callable[[Step, Array], None]
#: Called with a step and what it takes the clean tokens to be.
OnEstimate = Callable[[Step, Array], None]


class NonFiniteError(UserError):
    """A step gave NaN or infinity.

    ``step`` counts from 1, ``block`` from 0; ``stage`` and ``block`` are None where not known, ``weight`` names the
    first tensor of the weights file that is not finite, if one is.
    """

    def __init__(self, step: int, stage: str | None = None, block: int | None = None, weight: str | None = None):
        place = f" NaN or infinity first shows in stage {stage}" if stage else ""
        place += f", block {block}" if block is not None else ""
        look = stage == "block" and block is None and weight is None
        super().__init__(
            f"The latents of step {step} are not finite.{place}{'.' if place else ''}",
            expected="finite latents",
            got=f"NaN or infinity in the weight {weight}" if weight else None,
            remedy="debug=True (--debug) names the first bad block"
            if look
            else "pack the weights again, from a checkpoint that is whole"
            if weight
            else None,
        )
        self.step, self.stage, self.block, self.weight = step, stage, block, weight


def plan_steps(
    manifest: Manifest, steps: int | None = None, sigma_max: float | None = None, *, ode: bool = False
) -> tuple[Step, ...]:
    """The steps of a run, the bundle's own where not given: t below the boundary uses the last expert. UserError."""
    steps = manifest.sampler.steps if steps is None else steps
    sigma_max = manifest.sampler.sigma_max if sigma_max is None else sigma_max
    if not 1 <= steps <= MAX_STEPS:
        raise UserError("This number of steps is not trained.", expected=f"1 to {MAX_STEPS}", got=str(steps))
    if not (np.isfinite(sigma_max) and sigma_max > 0):
        raise UserError("This sigma_max cannot be used.", expected="a positive number", got=str(sigma_max))
    experts, boundary = manifest.model.experts, manifest.sampler.boundary
    at = times(steps, sigma_max)
    return tuple(
        Step(
            i, t, following, experts[-1 if boundary is not None and t < boundary else 0], update(t, following, ode=ode)
        )
        for i, (t, following) in enumerate(pairwise(at))
    )


def check_seed(seed: int) -> None:
    """Raises UserError on a negative seed."""
    if seed < 0:
        raise UserError("A seed cannot be negative.", expected="an integer of 0 or more", got=str(seed))


def draws_of(steps: Sequence[Step]) -> int:
    """How often noise is drawn: for the start, and for each step that adds fresh noise."""
    return 1 + sum(step.update.c != 0 for step in steps)


def given_noise(noise: npt.NDArray[Any], steps: Sequence[Step], shape: tuple[int, int, int]) -> Array:
    """Another program's draws in order, fp32 [draws, 16, T, H, W], for these steps; one draw may come as [16, T, H, W].

    ``noise`` is fp32 or fp16, or bf16's bits in uint16. Raises UserError on another shape or dtype, NaN and infinity.
    """
    wanted = (draws_of(steps), CHANNELS, *shape)
    values = noise[None] if noise.ndim == 4 and wanted[0] == 1 else noise
    if values.shape != wanted or values.dtype not in (np.float32, np.float16, np.uint16):
        raise UserError(
            "This noise is not of this run.",
            expected=f"fp32, fp16 or bf16 of {list(wanted)}: the start, then a draw for each step that adds noise",
            got=f"{values.dtype} of {list(noise.shape)}",
            remedy="the same --size, --frames and --steps; --ode draws once",
        )
    found: Array = from_bf16_bits(values) if values.dtype == np.uint16 else values.astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError("The noise holds NaN or infinity.", expected="finite noise")
    return found


class Noise:
    """Draws by seed, one ahead of need in a thread of its own: numpy's normals would else stand between steps."""

    def __init__(self, seed: int, shape: tuple[int, int, int], draws: int, given: Array | None = None) -> None:
        """``shape`` is (T, H, W) of the latents; ``given``, of ``given_noise``, takes the place of the seed's draws.

        The first draw begins at once. Raises UserError on a negative seed.
        """
        check_seed(seed)
        self._random = np.random.Generator(np.random.Philox(seed))
        self._given = None if given is None else iter(given)
        self._shape = (CHANNELS, *shape)
        self._left = draws
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="turbotrt-noise")
        self._next: Future[Array] | None = None
        self._ahead()

    def __enter__(self) -> Noise:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def draw(self) -> Array:
        """The next tokens of noise, fp32 [L, 64]."""
        if self._next is None:
            raise ValueError("more draws than were announced")
        drawn = self._next.result()
        self._ahead()
        return drawn

    def _ahead(self) -> None:
        self._next = self._pool.submit(self._make) if self._left else None
        self._left -= 1

    def _make(self) -> Array:
        if self._given is not None:
            return to_tokens(next(self._given))
        return to_tokens(self._random.standard_normal(self._shape, dtype=np.float32))


def estimate(step: Step, before: Array, after: Array, noise: Array) -> Array:
    """The clean tokens x − t·v that a step went towards, of its tokens before and after it and its noise.

    x' = a·x + b·v + c·noise, solved for v.
    """
    a, b, c = step.update.a, step.update.b, step.update.c
    v = (after - np.float32(a) * before - np.float32(c) * noise) / np.float32(b)
    clean: Array = before - np.float32(step.t) * v
    return clean


def sample(
    forward: Forward,
    steps: Sequence[Step],
    noise: Noise,
    after: AfterStep | None = None,
    on_estimate: OnEstimate | None = None,
) -> Array:
    """Clean tokens fp32 [L, 64] from this noise. Raises NonFiniteError with the step that went wrong."""
    with noise:
        fresh = noise.draw()
        x = fresh * np.float32(steps[0].t)
        for step in steps:
            fresh = noise.draw() if step.update.c else fresh  # unused where c is 0, but 0·NaN would not be 0
            before, x = x, forward(x, step, fresh)
            if not np.isfinite(x).all():
                raise NonFiniteError(step.index + 1)
            if after is not None:
                after(step, x)
            if on_estimate is not None:
                on_estimate(step, estimate(step, before, x, fresh))
    return x
