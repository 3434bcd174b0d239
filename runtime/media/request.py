"""What a caller asks for: one video, where it goes and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from runtime.numerics import Array


@dataclass(frozen=True)
class Request:
    """One video; None means the bundle's own, or that it is not given.

    ``prompt`` or ``embeds`` [n ≤ 512, 4096]; ``out`` names the file (``runtime.media.files.kinds``), without it the
    frames come back. ``image``: the first frame, brought to ``size`` (width, height) by stretching, or with ``crop`` by
    cutting; ``adaptive``: ``size``'s area at the image's aspect. ``condition`` in its place: the VAE's latents fp32
    [16, T, H, W]. ``noise``: another program's draws (``runtime.sampler.given_noise``). ``facts`` go to the file's
    metadata.
    """

    prompt: str | None = None
    out: Path | None = None
    embeds: npt.NDArray[Any] | None = None
    seed: int = 0
    noise: npt.NDArray[Any] | None = None
    image: Path | None = None
    crop: bool = False
    adaptive: bool = False
    condition: Array | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    steps: int | None = None
    ode: bool = False
    sigma_max: float | None = None
    debug: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
