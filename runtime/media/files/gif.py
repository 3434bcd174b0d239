"""Frames → an animated .gif, for places that take nothing else: 256 colours of its own for each frame, dithered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

from runtime.atomic import AtomicWriter, atomic_path, check_place, told
from runtime.media.files.encoders import Encoding
from runtime.media.files.movie import comment
from runtime.media.files.pillow import pillow_image
from runtime.media.files.sink import Frames

_SAMPLE = 1 << 14  # pixels that a palette is made of
_TICK = 10  # milliseconds: a gif counts in hundredths of a second


class Gif(AtomicWriter):
    """Plays again and again. Raises UserError where Pillow is missing or the file cannot be written."""

    def __init__(self, path: Path, fps: int, how: Encoding) -> None:
        super().__init__(path)
        self._fps, self._how = fps, how
        self._pictures: list[Any] = []

    def check(self) -> None:
        check_place(self.path)
        self._image = pillow_image()

    def __enter__(self) -> Gif:
        self.check()
        self.begin()
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        self._pictures = []
        with atomic_path(self.path) as temporary:
            yield
            first, *others = self._pictures
            facts = {"comment": comment(self._how.facts).encode()} if self._how.facts else {}
            durations = list(milliseconds(len(self._pictures), self._fps))
            animation: dict[str, Any] = {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
            first.save(temporary, format="GIF", optimize=False, **animation, **facts)

    def write(self, frames: Frames) -> None:
        with told(self.path):
            self._pictures += [self._colours(self._image.fromarray(frame)) for frame in frames]

    def _colours(self, picture: Any) -> Any:
        smaller = picture.reduce(max(1, isqrt(picture.width * picture.height // _SAMPLE)))
        return picture.quantize(palette=smaller.quantize(256), dither=self._image.Dither.FLOYDSTEINBERG)


def milliseconds(count: int, fps: int) -> Iterator[int]:
    """How long each frame stands, in whole hundredths of a second that keep to the pace."""
    for index in range(count):
        yield _TICK * (round((index + 1) * 100 / fps) - round(index * 100 / fps))
