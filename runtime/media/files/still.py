"""A video of one frame → a picture, .png or .jpg, under a temporary name until it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.atomic import AtomicWriter, atomic_path, check_place, told
from runtime.media.files.encoders import Encoding
from runtime.media.files.movie import comment, tags
from runtime.media.files.pillow import pillow_image
from runtime.media.files.sink import Frames

#: Suffix → Pillow's name and options: png without loss; jpg at the quality above which files only grow.
STILLS: dict[str, tuple[str, dict[str, int]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}


class Still(AtomicWriter):
    """One picture. Raises UserError where Pillow is missing or the file cannot be written."""

    def __init__(self, path: Path, how: Encoding) -> None:
        super().__init__(path)
        self._facts = how.facts

    def check(self) -> None:
        check_place(self.path)
        self._image = pillow_image()

    def __enter__(self) -> Still:
        self.check()
        self.begin()
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        with atomic_path(self.path) as self._temporary:
            yield

    def write(self, frames: Frames) -> None:
        """Raises ValueError on more than one frame: ``kinds.check_frames`` said so long before."""
        (frame,) = frames
        kind, options = STILLS[self.path.suffix.lower()]
        with told(self.path):
            self._image.fromarray(frame).save(self._temporary, format=kind, **options, **self._said(kind))

    def _said(self, kind: str) -> dict[str, Any]:
        """The facts as the format has them: texts by name in a png, a comment in a jpg."""
        if not self._facts:
            return {}
        if kind != "PNG":
            return {"comment": comment(self._facts).encode()}
        from PIL.PngImagePlugin import PngInfo

        texts = PngInfo()
        for name, text in tags(self._facts).items():
            texts.add_itxt(name.capitalize(), text)
        return {"pnginfo": texts}
