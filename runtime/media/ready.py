"""Requests checked against a bundle, before anything is loaded: what cannot be made is said here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plugins.errors import UserError
from runtime.atomic import check_place
from runtime.bundle import Manifest
from runtime.inputs import LATENT_CHANNELS, latent_shape, text_bits
from runtime.media.decoders import check_decoder
from runtime.media.files.image import adaptive_size, first_frame
from runtime.media.files.kinds import LATENTS, check_encoding, check_frames, sink_for
from runtime.media.files.picture import open_image
from runtime.media.files.sink import FrameSink
from runtime.media.preview import check_preview
from runtime.media.request import Request
from runtime.numerics import Array
from runtime.sampler import check_seed, given_noise, plan_steps


@dataclass(frozen=True)
class Ready:
    """A request that can be made. ``size`` (width, height) of its video, ``shape``: latent (T, H, W).

    ``sink``: where its frames go, None where they come back or latents alone are written, to ``latents_to``. A folder
    of frames is claimed from now on.
    """

    request: Request
    size: tuple[int, int]
    shape: tuple[int, int, int]
    sink: FrameSink | None = None
    latents_to: Path | None = None

    def first_frame(self) -> Array | None:
        """fp32 [3, h, w] of the request's image, None where there is none."""
        image = self.request.image
        return None if image is None else first_frame(open_image(image), self.size, crop=self.request.crop)


def ready(manifest: Manifest, requests: Sequence[Request]) -> list[Ready]:
    """Raises UserError for the first thing that cannot be made of them."""
    return [_ready(manifest, request) for request in requests]


def _ready(manifest: Manifest, request: Request) -> Ready:
    _check_text(manifest, request)
    _check_source(manifest, request)
    size, out = _size(manifest, request), request.out
    request = replace(request, size=size)
    if out is not None:
        check_frames(out, manifest.model.frames if request.frames is None else request.frames)
    shape = latent_shape(manifest, size, request.frames)
    steps = plan_steps(manifest, request.steps, request.sigma_max, ode=request.ode)
    check_seed(request.seed)
    if request.noise is not None:
        given_noise(request.noise, steps, shape)
    made = Ready(request, size, shape)
    if out is not None and out.suffix == LATENTS:
        check_encoding(out, request.encoding(manifest))
        check_place(out)
        made = replace(made, latents_to=out)
    elif out is not None:
        made = replace(made, sink=_sink(manifest, request, out))
    if request.preview is not None:
        check_preview(request.preview)
    _check_stages(manifest, made)
    return made


def _check_text(manifest: Manifest, request: Request) -> None:
    if (request.prompt is None) == (request.embeds is None):
        raise UserError(
            "A video is made from one source of text.",
            expected="a prompt or embeddings",
            got="neither" if request.prompt is None else "both",
        )
    if request.embeds is not None:
        text_bits(request.embeds, manifest.model)


def _check_source(manifest: Manifest, request: Request) -> None:
    """The model and what it is given must fit, and the image must be one."""
    name, takes_none = manifest.model.name, manifest.model.in_channels == LATENT_CHANNELS
    given = request.image is not None or request.condition is not None
    if takes_none and given:
        raise UserError(
            f"{name} makes video from text alone: it takes no image.",
            remedy="leave it out, or use a bundle of an image-to-video model",
        )
    if not takes_none and not given:
        raise UserError(f"{name} makes video from an image, and there is none.", remedy="give --image FILE")


def _size(manifest: Manifest, request: Request) -> tuple[int, int]:
    """(width, height) of the video: what is asked for, or of its area at the image's aspect."""
    target = request.size or manifest.model.size
    if request.image is None:
        return target
    image = open_image(request.image)
    return adaptive_size(image.size, target) if request.adaptive else target


def _check_stages(manifest: Manifest, made: Ready) -> None:
    """The bundle must have what this takes besides the DiT."""
    request = made.request
    if made.latents_to is None:
        check_decoder(manifest, request.decoder)
    if request.image is not None:
        check_decoder(manifest, "full")
        manifest.stage("encode_next")
    if request.preview is not None:
        check_decoder(manifest, "tiny")


def _sink(manifest: Manifest, request: Request, out: Path) -> FrameSink:
    """What the frames go to; it has looked whether they can."""
    sink = sink_for(out, request.size or manifest.model.size, manifest.model.fps, request.encoding(manifest))
    sink.check()
    return sink
