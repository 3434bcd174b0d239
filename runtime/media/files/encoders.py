"""Video codecs: which files hold them, which encoders make them, and at what quality and speed.

Presets keep ahead of the VAE's decoder on 16 cores, with noise for frames, the worst case: of 81 frames of 1280x720
libx264 medium takes 4.3 s there, veryfast 1.3; libx265 ultrafast 2.2, libsvtav1 10 1.6, libvpx-vp9 realtime 2.0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, get_args

from plugins.errors import UserError

Codec = Literal["auto", "h264", "hevc", "av1"]
CODECS: tuple[Codec, ...] = get_args(Codec)
QUALITY = 80  # of 100: visually lossless


@dataclass(frozen=True)
class Encoding:
    """How a file is made; None is the usual: ``quality`` 1 to 100, ``fps`` frames a second in place of the model's.

    ``facts`` go to the file's metadata.
    """

    codec: Codec = "auto"
    quality: int | None = None
    fps: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoder:
    """One of FFmpeg's: its quantizer's option is ``worst`` at quality 0, and ``a_point`` less with each point.

    ``smallest``: pixels of a side that it takes.
    """

    name: str
    option: str
    worst: float
    a_point: float
    settings: Mapping[str, str] = field(default_factory=dict)
    hardware: bool = False
    smallest: int = 16

    def options(self, quality: int | None) -> dict[str, str]:
        """As FFmpeg takes them."""
        factor = round(self.worst - self.a_point * (QUALITY if quality is None else quality))
        return {**self.settings, self.option: str(factor)}


_NVENC = {"preset": "p4", "rc": "vbr", "b": "0"}  # without a rate the quantizer alone decides
_VP9 = {"b": "0", "deadline": "realtime", "cpu-used": "8", "row-mt": "1", "tile-columns": "2"}
#: Codec → encoders: the first that opens makes the file. The GPU's own comes first; many GPUs have none.
ENCODERS: Mapping[str, tuple[Encoder, ...]] = MappingProxyType(
    {
        "h264": (
            Encoder("h264_nvenc", "cq", 50, 0.4, _NVENC, hardware=True),
            Encoder("libx264", "crf", 50, 0.4, {"preset": "veryfast"}),
        ),
        "hevc": (
            Encoder("hevc_nvenc", "cq", 51, 0.4, _NVENC, hardware=True),
            # libx265 4.3 writes past its memory at 48x32.
            Encoder("libx265", "crf", 51, 0.4, {"preset": "ultrafast", "x265-params": "log-level=none"}, smallest=64),
        ),
        "av1": (
            Encoder("av1_nvenc", "cq", 63, 0.4, _NVENC, hardware=True),
            Encoder("libsvtav1", "crf", 63, 0.45, {"preset": "10"}),
        ),
        "vp9": (Encoder("libvpx-vp9", "crf", 63, 0.4, _VP9),),
    }
)


@dataclass(frozen=True)
class Container:
    """A kind of file: FFmpeg's muxer and its options, and its codecs, the usual one first."""

    muxer: str
    options: Mapping[str, str]
    codecs: tuple[str, ...]


#: Both put the index in front, so that a browser plays what it has of a file.
CONTAINERS: Mapping[str, Container] = MappingProxyType(
    {
        ".mp4": Container("mp4", {"movflags": "faststart"}, ("h264", "hevc", "av1")),
        ".webm": Container("webm", {"cues_to_front": "1"}, ("vp9", "av1")),
    }
)


def codec_named(name: str) -> Codec:
    """The codec of that name. Raises UserError listing them."""
    for known in CODECS:
        if known == name:
            return known
    raise UserError(f"--codec {name!r} is not known.", expected=", ".join(CODECS), got=name)


def check_numbers(how: Encoding) -> None:
    """Raise UserError for a quality or a rate outside its scale."""
    if how.quality is not None and not 1 <= how.quality <= 100:
        raise UserError("This quality cannot be used.", expected="--quality 1 to 100", got=str(how.quality))
    if how.fps is not None and not 1 <= how.fps <= 240:
        raise UserError("This frame rate cannot be used.", expected="--fps 1 to 240", got=str(how.fps))


def codec_for(suffix: str, codec: str) -> str:
    """The codec of a file of this kind. Raises UserError for one that it does not hold."""
    known = CONTAINERS[suffix].codecs
    if codec not in ("auto", *known):
        raise UserError(
            f"A {suffix} file holds no {codec}.",
            expected=f"--codec auto ({known[0]}), " + ", ".join(name for name in known if name in CODECS),
            got=codec,
        )
    return known[0] if codec == "auto" else codec


def check_size(codec: str, size: tuple[int, int]) -> None:
    """Raise UserError for a picture (width, height) that a codec's encoders do not take."""
    smallest = ENCODERS[codec][-1].smallest
    if min(size) < smallest:
        raise UserError(
            f"A {codec} video cannot be so small.",
            expected=f"at least {smallest} pixels a side",
            got=f"{size[0]}x{size[1]}",
            remedy="another --codec",
        )


class Choice:
    """The encoder that makes a codec here, found behind other work: a GPU takes half a second to say that it has none.

    ``size``: (width, height); encoders have limits.
    """

    def __init__(self, codec: str, size: tuple[int, int]) -> None:
        self._encoders = ENCODERS[codec]
        self._opened = [_opened(encoder.name, size) for encoder in self._encoders if encoder.hardware]

    def result(self) -> Encoder:
        """Waits until it is known."""
        hardware = (encoder for encoder in self._encoders if encoder.hardware)
        found = (encoder for encoder, opens in zip(hardware, self._opened, strict=True) if opens.result())
        return next(found, self._encoders[-1])


@cache
def _opened(name: str, size: tuple[int, int]) -> Future[bool]:
    """Whether an encoder opens here, asked once a process, in a thread of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="turbotrt-encoder")
    try:
        return pool.submit(opens, name, size)
    finally:
        pool.shutdown(wait=False)


def opens(name: str, size: tuple[int, int]) -> bool:
    """Whether an encoder is in this PyAV and runs on this machine."""
    import av

    try:
        context: Any = av.CodecContext.create(name, "w")
        context.width, context.height = size
        context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 16)
        with silent():
            context.open()
    except (av.FFmpegError, ValueError):  # PyAV's own for a codec that it was built without
        return False
    return True


@contextmanager
def silent() -> Iterator[None]:
    """SVT-AV1 writes about itself on standard error, and takes nothing but the environment's word not to."""
    before = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = "1"  # errors
    try:
        yield
    finally:
        if before is None:
            with suppress(KeyError):
                del os.environ["SVT_LOG"]
        else:
            os.environ["SVT_LOG"] = before
