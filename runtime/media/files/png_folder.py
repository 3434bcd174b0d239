"""Frames → a folder of png, written as frames come, under a temporary name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.atomic import AtomicWriter, atomic_folder, check_place, told
from runtime.media.files.claim import FolderClaim
from runtime.media.files.pillow import pillow_image
from runtime.media.files.sink import Frames


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
