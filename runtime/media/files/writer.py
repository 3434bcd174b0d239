"""A sink in a thread of its own: frames are encoded while the next ones are decoded."""

from __future__ import annotations

import queue
import threading
import time
from types import TracebackType

from runtime.media.files.video_file import Frames, FrameSink

_WAITING = 4  # chunks: what decoding may run ahead


class BackgroundWriter:
    """A context around a sink. An error of the sink is raised by the next ``write`` or at the end.

    ``seconds`` is the time spent in the sink.
    """

    def __init__(self, sink: FrameSink) -> None:
        self._sink = sink
        self._queue: queue.Queue[Frames | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="turbotrt-encode", daemon=True)
        self.seconds = 0.0
        self.frames = 0

    def __enter__(self) -> BackgroundWriter:
        self._sink.__enter__()
        self._thread.start()
        return self

    def write(self, frames: Frames) -> None:
        """Hand over frames; waits while the sink is far behind."""
        if self._error is not None:
            raise self._error
        self._queue.put(frames)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._queue.put(None)
        self._thread.join()
        failed = error or self._error
        started = time.perf_counter()
        self._sink.__exit__(type(failed) if failed else None, failed, None)
        self.seconds += time.perf_counter() - started
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (frames := self._queue.get()) is not None:
            if self._error is not None:
                continue  # drain, so that the other side does not wait for ever
            started = time.perf_counter()
            try:
                self._sink.write(frames)
            except BaseException as error:
                self._error = error
            self.seconds += time.perf_counter() - started
            self.frames += len(frames)
