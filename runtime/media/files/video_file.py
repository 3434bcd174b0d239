"""Frames → a file: H.264 in mp4 through PyAV, or a folder of png. Written as frames come, under a temporary name."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import uuid
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError

Frames = npt.NDArray[np.uint8]
_QUALITY = "18"  # x264's constant rate factor: visually lossless


class FrameSink(Protocol):
    """A context that takes frames uint8 [t, h, w, 3] in order; the result appears whole or not at all."""

    def check(self) -> None:
        """Raise UserError where it cannot be written here; long before there is anything to write."""

    def __enter__(self) -> FrameSink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, frames: Frames) -> None: ...


class Mp4:
    """H.264, yuv420p. Raises UserError where PyAV is missing or the file cannot be written."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        self._path, self._size, self._fps = path, size, fps
        self._temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"

    def check(self) -> None:
        check_folder(self._path)
        try:
            import av
        except ImportError as error:
            remedy = "pip install 'turbotrt[video]', or write png frames or latents"
            raise UserError("Videos need PyAV, which is not installed.", remedy=remedy) from error
        self._av: Any = av

    def __enter__(self) -> Mp4:
        self.check()
        try:
            self._container = self._av.open(str(self._temporary), "w", format="mp4", options={"movflags": "faststart"})
        except OSError as error:
            raise UserError(f"{self._path} cannot be written.", got=str(error)) from error
        stream: Any = self._container.add_stream("libx264", rate=Fraction(self._fps), options={"crf": _QUALITY})
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        self._stream = stream
        return self

    def write(self, frames: Frames) -> None:
        for frame in frames:
            picture = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                os.replace(self._temporary, self._path)
        except OSError as problem:
            if kind is None:
                raise UserError(f"{self._path} cannot be written.", got=str(problem)) from problem
        finally:
            self._temporary.unlink(missing_ok=True)


class PngFolder:
    """00000.png, 00001.png, … in a new folder. Raises UserError if it exists and holds anything."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
        self._count = 0

    def check(self) -> None:
        check_folder(self._path)
        if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
            raise UserError(f"{self._path} exists already.", expected="a new or empty folder for the frames")
        try:
            from PIL import Image
        except ImportError as error:
            raise UserError("png frames need Pillow.", remedy="pip install 'turbotrt[video]'") from error
        self._image: Any = Image

    def __enter__(self) -> PngFolder:
        self.check()
        try:
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written.", got=error.strerror) from error
        return self

    def write(self, frames: Frames) -> None:
        for frame in frames:
            self._image.fromarray(frame).save(self._temporary / f"{self._count:05d}.png")
            self._count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._temporary.replace(self._path)  # over an empty folder this works too
        else:
            shutil.rmtree(self._temporary, ignore_errors=True)


def check_folder(path: Path) -> None:
    """Raise UserError where no file can be made beside this one."""
    folder = path.parent
    if not folder.is_dir():
        raise UserError(
            f"{path} cannot be written.",
            expected="a folder that exists",
            got=f"no folder {folder}",
            remedy=f"mkdir -p {shlex.quote(str(folder))}",
        )
    try:
        # Permissions alone do not tell: root, read-only and special file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written.", expected="a folder that takes files", got=error.strerror
        ) from error


def sink_for(path: Path, size: tuple[int, int], fps: int) -> FrameSink:
    """The sink that a name asks for: .mp4, or no suffix for a folder of png frames. Raises UserError."""
    if path.suffix.lower() == ".mp4":
        return Mp4(path, size, fps)
    if not path.suffix:
        return PngFolder(path)
    raise UserError(
        f"--out {path} names no kind of output.",
        expected="NAME.mp4, NAME.safetensors for latents, or a name without a suffix for png frames",
        got=path.suffix,
    )
