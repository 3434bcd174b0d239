"""Which kind of output a name asks for."""

from __future__ import annotations

from pathlib import Path

from plugins.errors import UserError
from runtime.media.files.still import STILLS, Still
from runtime.media.files.video_file import FrameSink, Mp4, PngFolder

LATENTS = ".safetensors"


def sink_for(path: Path, size: tuple[int, int], fps: int) -> FrameSink:
    """The sink that a name asks for: .mp4, .png or .jpg, no suffix for a folder of png frames. Raises UserError."""
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        return Mp4(path, size, fps)
    if suffix in STILLS:
        return Still(path)
    if not suffix:
        return PngFolder(path)
    raise UserError(
        f"--out {path} names no kind of output.",
        expected=f"NAME.mp4, NAME{LATENTS} for latents, NAME.png or NAME.jpg for a video of one frame, or a name "
        "without a suffix for png frames",
        got=path.suffix,
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
