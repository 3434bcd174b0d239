"""Frames → a file: H.264 in mp4 through PyAV, or a folder of png. Written as frames come, under a temporary name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.atomic import AtomicWriter, atomic_folder, atomic_path, check_place, told
from runtime.media.files.claim import FolderClaim
from runtime.media.files.pillow import pillow_image

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


class Mp4(AtomicWriter):
    """H.264, yuv420p. Raises UserError where PyAV is missing or the file cannot be written."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        super().__init__(path)
        self._size, self._fps = size, fps

    def check(self) -> None:
        check_place(self.path)
        try:
            import av
        except ImportError as error:
            remedy = "pip install 'turbotrt[video]', or write png frames or latents"
            raise UserError("Videos need PyAV, which is not installed.", remedy=remedy) from error
        self._av: Any = av

    def __enter__(self) -> Mp4:
        self.check()
        self.begin()
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        with atomic_path(self.path) as temporary:
            container = self._av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"})
            try:
                stream: Any = container.add_stream("libx264", rate=Fraction(self._fps), options={"crf": _QUALITY})
                stream.width, stream.height = self._size
                stream.pix_fmt = "yuv420p"
                self._container, self._stream = container, stream
                yield
                container.mux(stream.encode(None))
                container.close()
            except BaseException:
                with suppress(OSError):
                    container.close()
                raise

    def write(self, frames: Frames) -> None:
        for frame in frames:
            picture = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
            with told(self.path):
                self._container.mux(self._stream.encode(picture))


class PngFolder(AtomicWriter):
    """00000.png, 00001.png, … in a new folder, claimed from ``check`` on. Raises UserError if it holds anything.

    A link to a folder is that folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(Path(os.path.realpath(path)))
        self._count = 0
        self._claim: FolderClaim | None = None

    def check(self) -> None:
        if self._claim is None or self._claim.release.done:
            self._claim = FolderClaim(self.path)
        check_place(self.path, directory=True)
        self._image = pillow_image()

    def __enter__(self) -> PngFolder:
        self.check()
        self.begin()
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            with atomic_folder(self.path) as self._temporary:
                yield
        finally:
            if self._claim is not None:
                self._claim.release()

    def write(self, frames: Frames) -> None:
        for frame in frames:
            with told(self.path):
                self._image.fromarray(frame).save(self._temporary / f"{self._count:05d}.png")
            self._count += 1
