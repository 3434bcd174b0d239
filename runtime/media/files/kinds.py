"""Which kind of output a name asks for."""

from __future__ import annotations

from pathlib import Path

from plugins.errors import UserError
from runtime.media.files.encoders import CONTAINERS, Encoding, check_numbers, codec_named
from runtime.media.files.gif import Gif
from runtime.media.files.movie import Movie
from runtime.media.files.png_folder import PngFolder
from runtime.media.files.sink import FrameSink
from runtime.media.files.still import STILLS, Still

LATENTS = ".safetensors"
GIF = ".gif"


def sink_for(path: Path, size: tuple[int, int], fps: int, how: Encoding | None = None) -> FrameSink:
    """The sink that a name asks for: .mp4, .webm, .gif, .png or .jpg, no suffix for a folder of png frames.

    ``fps``: the model's. Raises UserError, also for an encoding that such a file does not have.
    """
    suffix, how = path.suffix.lower(), how or Encoding()
    check_encoding(path, how)
    fps = how.fps or fps
    if suffix in CONTAINERS:
        return Movie(path, size, fps, how)
    if suffix == GIF:
        return Gif(path, fps, how)
    if suffix in STILLS:
        return Still(path, how)
    if not suffix:
        return PngFolder(path)
    raise UserError(
        f"--out {path} names no kind of output.",
        expected=f"NAME.mp4, NAME.webm, NAME.gif, NAME{LATENTS} for latents, NAME.png or NAME.jpg for a video of one "
        "frame, or a name without a suffix for png frames",
        got=path.suffix,
    )


def check_encoding(path: Path, how: Encoding) -> None:
    """Raise UserError for a codec, a quality or a rate that is none, or that a file of this name does not have."""
    codec_named(how.codec)
    check_numbers(how)
    asked = [f"--codec {how.codec}"] if how.codec != "auto" else []
    asked += [f"--quality {how.quality}"] if how.quality is not None else []
    if asked and path.suffix.lower() not in CONTAINERS:
        raise UserError(
            f"{path} is written by no video codec.",
            expected="NAME.mp4 or NAME.webm, or neither --codec nor --quality",
            got=", ".join(asked),
        )
    if how.fps is not None and path.suffix.lower() not in (*CONTAINERS, GIF):
        raise UserError(
            f"{path} has no frame rate.",
            expected="NAME.mp4, NAME.webm or NAME.gif, or no --fps",
            got=f"--fps {how.fps}",
        )


def check_frames(path: Path, frames: int) -> None:
    """Raise UserError where a video of so many frames is to be one picture."""
    if path.suffix.lower() in STILLS and frames != 1:
        raise UserError(
            f"{path} is one picture, and the video has more frames.",
            expected="--frames 1",
            got=f"{frames} frames",
            remedy="NAME.mp4, or a name without a suffix for a folder of png frames",
        )
