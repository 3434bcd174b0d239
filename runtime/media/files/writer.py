"""A sink in a thread of its own: frames are encoded while the next ones are decoded."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from types import TracebackType

from plugins.interrupts import Ending, uninterrupted
from runtime.media.files.sink import Frames, FrameSink

_WAITING = 4  # chunks: what decoding may run ahead


class _Encoder:
    """What the thread works on. It knows nothing of the writer, so that dropping the writer ends the thread."""

    def __init__(self, sink: FrameSink) -> None:
        self.sink = sink
        self.queue: queue.Queue[Frames | None] = queue.Queue(_WAITING)
        self.error: BaseException | None = None
        self.stopping = False
        self.seconds = 0.0
        self.frames = 0

    def run(self) -> None:
        while (frames := self.queue.get()) is not None:
            if self.error is not None or self.stopping:
                continue  # drain, so that the other side does not wait for ever
            started = time.perf_counter()
            try:
                self.sink.write(frames)
            except BaseException as error:
                self.error = error
            self.seconds += time.perf_counter() - started
            self.frames += len(frames)

    def stop(self, thread: threading.Thread) -> None:
        """End the thread after the frames that it has in hand."""
        self.stopping = True
        while thread.is_alive():
            with suppress(queue.Full):
                self.queue.put_nowait(None)
            thread.join(0.01)


class BackgroundWriter:
    """A context around a sink. An error of the sink is raised by the next ``write`` or at the end.

    However it ends, by Ctrl-C at any point too, its thread has ended.
    """

    def __init__(self, sink: FrameSink) -> None:
        self._sink, self._encoder = sink, _Encoder(sink)
        self._thread = threading.Thread(target=self._encoder.run, name="turbotrt-encode", daemon=True)
        self._stop = Ending(self, self._encoder.stop, self._thread)

    @property
    def seconds(self) -> float:
        """The time spent in the sink."""
        return self._encoder.seconds

    @property
    def frames(self) -> int:
        return self._encoder.frames

    def __enter__(self) -> BackgroundWriter:
        self._sink.__enter__()
        try:
            with uninterrupted():  # a thread whose start was interrupted is there or not, and nothing tells
                self._thread.start()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def write(self, frames: Frames) -> None:
        """Hand over frames; waits while the sink is far behind."""
        if self._encoder.error is not None:
            raise self._encoder.error
        self._encoder.queue.put(frames)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._encoder.queue.put(None)
                self._thread.join()
        except BaseException as interruption:
            error = interruption
            raise
        finally:
            self._end(error)
        if error is None and self._encoder.error is not None:
            raise self._encoder.error

    def _end(self, error: BaseException | None) -> None:
        """End the thread, then the sink: with what went wrong here or there, if anything did."""
        self._stop()
        failed = error or self._encoder.error
        started = time.perf_counter()
        self._sink.__exit__(type(failed) if failed else None, failed, None)
        self._encoder.seconds += time.perf_counter() - started
