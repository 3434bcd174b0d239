"""A video's frames on their way: to a file while the next ones are decoded, or into one array."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from runtime.media.files.video_file import Frames, FrameSink
from runtime.media.files.writer import BackgroundWriter
from runtime.report import Report


def written(
    frames: Iterable[Frames], total: int, sink: FrameSink | None, name: str, report: Report, check: Callable[[], None]
) -> tuple[Frames | None, float]:
    """All frames where there is no sink; and the seconds that the sink worked.

    ``check`` is called after each chunk, and may raise: the file is then as it was before.
    """
    with report.stage(f"decode {name}") as update:
        done = 0

        def counted() -> Iterable[Frames]:
            nonlocal done
            for chunk in frames:
                check()
                yield chunk
                done += len(chunk)
                update(done, total)

        if sink is None:
            return np.concatenate(list(counted())), 0.0
        with BackgroundWriter(sink) as writer:
            for chunk in counted():
                writer.write(chunk)
        return None, writer.seconds
