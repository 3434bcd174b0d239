"""What a caller asks for: one video, where it goes and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from runtime.bundle import Manifest
from runtime.media.decoders import DecoderName
from runtime.media.files.encoders import Codec, Encoding
from runtime.numerics import Array
from runtime.versions import own_version


@dataclass(frozen=True)
class Request:
    """One video; None means the bundle's own, or that it is not given.

    ``prompt`` or ``embeds`` [n ≤ 512, 4096]; ``out`` names the file (``runtime.media.files.kinds``), without it the
    frames come back. ``image``: the first frame, brought to ``size`` (width, height) by stretching, or with ``crop`` by
    cutting; ``adaptive``: ``size``'s area at the image's aspect. ``condition`` in its place: the VAE's latents fp32
    [16, T, H, W]. ``noise``: another program's draws (``runtime.sampler.given_noise``). ``decoder``: which
    makes the frames. ``codec``, ``quality`` and ``fps`` of the file (``runtime.media.files.encoders``). ``preview``: a
    file that shows what each step takes the video to be. ``facts`` go to the file's metadata.
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
    decoder: DecoderName = "full"
    codec: Codec = "auto"
    quality: int | None = None
    fps: int | None = None
    preview: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    def latents_facts(self, manifest: Manifest) -> dict[str, str]:
        """What latents were made from, for their file's metadata."""
        own = {"seed": str(self.seed), "steps": str(self.steps or manifest.sampler.steps), "ode": str(self.ode).lower()}
        return {"model": manifest.model.name, **own, **self.facts}

    def encoding(self, manifest: Manifest) -> Encoding:
        """How its file of frames is made, and what that file says of itself."""
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        versions = {"turbotrt": own_version(), **manifest.tools}
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        facts = {**prompt, **self.latents_facts(manifest), "decoder": self.decoder, "gpu": manifest.gpu.name}
        return Encoding(self.codec, self.quality, self.fps, {**facts, "versions": said})
