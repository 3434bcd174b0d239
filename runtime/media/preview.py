"""What each step takes the video to be, small, in a file that is whole at any time: a viewer sees it sharpen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np

from plugins.errors import UserError
from runtime.atomic import check_place
from runtime.media.files.encoders import CONTAINERS, Encoding
from runtime.media.files.kinds import GIF, sink_for
from runtime.media.files.pillow import pillow_image
from runtime.media.files.sink import Frames
from runtime.media.files.still import STILLS
from runtime.numerics import Array
from runtime.sampler import Step

SIDE = 512  # pixels at most, of the longer one
_FACTORS = (1, 2, 4, 8)  # sides are multiples of 16, and a codec's are even


class Preview:
    """A context. Called with a step and its latents, it decodes them and writes the file behind the next step.

    ``path``: .mp4, .webm or .gif for all frames, .png or .jpg for the middle one. ``size`` (width, height), ``fps`` and
    ``how`` are the video's. ``decode``: latents fp32 [16, T, H, W] → frames, chunk by chunk. ``seconds``: what steps
    waited for it. Raises UserError where such a file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        how: Encoding,
        decode: Callable[[Array], Iterable[Frames]],
    ) -> None:
        check_preview(path)
        self._path, self._fps, self._decode = path, fps, decode
        self._factor = next((f for f in _FACTORS if max(size) <= SIDE * f), _FACTORS[-1])
        self._size = size[0] // self._factor, size[1] // self._factor
        self._how = Encoding(fps=how.fps if path.suffix.lower() not in STILLS else None, facts=how.facts)
        self._image = pillow_image()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="turbotrt-preview")
        self._written: Future[None] | None = None
        self.seconds = 0.0

    def __enter__(self) -> Preview:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """The file is written to its end, and an error of writing raised."""
        self._pool.shutdown()
        if kind is None:
            self._wait()

    def __call__(self, step: Step, latents: Array) -> None:
        """Raises UserError where the file of the step before could not be written."""
        started = time.perf_counter()
        chosen = self._shown(latents)
        self._wait()
        self.seconds += time.perf_counter() - started
        how = replace(self._how, facts={**self._how.facts, "step": str(step.index + 1)})
        self._written = self._pool.submit(self._write, chosen, how)

    def _shown(self, latents: Array) -> Frames:
        """All frames, or the middle one, in the preview's size."""
        frames: Iterator[Frames] = (frame for chunk in self._decode(latents) for frame in chunk)
        if self._path.suffix.lower() in STILLS:
            middle = 2 * (latents.shape[1] - 1)
            frames = islice(frames, middle, middle + 1)
        return np.stack([np.asarray(self._image.fromarray(frame).reduce(self._factor)) for frame in frames])

    def _write(self, frames: Frames, how: Encoding) -> None:
        with sink_for(self._path, self._size, self._fps, how) as sink:
            sink.write(frames)

    def _wait(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            written.result()


def check_preview(path: Path) -> None:
    """Raise UserError for a name that is no preview's, and where it cannot be written."""
    if path.suffix.lower() not in (*CONTAINERS, GIF, *STILLS):
        raise UserError(
            f"--preview {path} names no kind of preview.",
            expected="NAME.mp4, NAME.webm or NAME.gif, or NAME.png or NAME.jpg for the middle frame",
            got=path.suffix or "no suffix",
        )
    check_place(path)
