"""Frames → a video file through PyAV: .mp4 or .webm, encoded as frames come, under a temporary name. No sound."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.atomic import AtomicWriter, atomic_path, check_place, told
from runtime.media.files.encoders import CONTAINERS, Choice, Encoder, Encoding, check_size, codec_for, silent
from runtime.media.files.sink import Frames

_BT709, _LIMITED = 1, 1  # FFmpeg's numbers for the colours of high definition, and for the range 16 to 235


class Movie(AtomicWriter):
    """yuv420p in BT.709, and said so in the file. Raises UserError where PyAV is missing or it cannot be written."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int, how: Encoding) -> None:
        """``size`` (width, height), both even. Raises UserError for a codec or a size that a file cannot have."""
        super().__init__(path)
        self._size, self._fps, self._how = size, fps, how
        self._container_kind = CONTAINERS[path.suffix.lower()]
        self._codec = codec_for(path.suffix.lower(), how.codec)
        check_size(self._codec, size)
        self._choice: Choice | None = None

    def check(self) -> None:
        check_place(self.path)
        try:
            import av
        except ImportError as error:
            remedy = "pip install 'turbotrt[video]', or write png frames or latents"
            raise UserError("Videos need PyAV, which is not installed.", remedy=remedy) from error
        self._av: Any = av
        self._choice = Choice(self._codec, self._size)

    def __enter__(self) -> Movie:
        if self._choice is None:
            self.check()
        self.begin()
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        kind = self._container_kind
        with atomic_path(self.path) as temporary:
            container = self._av.open(str(temporary), "w", format=kind.muxer, options=dict(kind.options))
            try:
                self._open(container)
                yield
                container.mux(self._stream.encode(None))
                container.close()
            except BaseException:
                with suppress(OSError):
                    container.close()
                raise

    def _open(self, container: Any) -> None:
        assert self._choice is not None
        encoder: Encoder = self._choice.result()
        stream = container.add_stream(
            encoder.name, rate=Fraction(self._fps), options=encoder.options(self._how.quality)
        )
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if self._codec == "hevc":
            context.codec_tag = "hvc1"  # the other of its two names is one that Apple's players refuse
        container.metadata.update(tags(self._how.facts))
        with silent():
            context.open()
        self._container, self._stream = container, stream
        self._reformatter = self._av.video.reformatter.VideoReformatter()

    def write(self, frames: Frames) -> None:
        for frame in frames:
            picture = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
            planes = self._reformatter.reformat(
                picture, format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED
            )
            with told(self.path):
                self._container.mux(self._stream.encode(planes))


def tags(facts: Mapping[str, str]) -> dict[str, str]:
    """What every player shows of a file: its prompt as the title, and all facts as JSON in the comment."""
    title = {"title": facts["prompt"]} if facts.get("prompt") else {}
    return {**title, **({"comment": comment(facts)} if facts else {})}


def comment(facts: Mapping[str, str]) -> str:
    """JSON, in which a program finds again what a file was made from."""
    return json.dumps(dict(facts), ensure_ascii=False)
