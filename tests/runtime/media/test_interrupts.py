"""Ctrl-C before any line between starting and closing the writer's thread: no thread and no file is left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL.Image")

from runtime.media.files.kinds import sink_for
from runtime.media.files.writer import BackgroundWriter
from tests.support.pressed import lines_of, pressed_at

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)


def writing(path: Path) -> Callable[[], None]:
    """A check, and two chunks through the writer's thread."""

    def work() -> None:
        sink = sink_for(path, (16, 16), 16)
        sink.check()
        with BackgroundWriter(sink) as writer:
            writer.write(FRAMES)
            writer.write(FRAMES)

    return work


@pytest.fixture(autouse=True)
def _few_objects_to_collect() -> Iterator[None]:
    """What was alive before is not looked at each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("turbotrt")]


@pytest.mark.parametrize("name", ["frames", "cat.mp4", "cat.webm", "cat.gif"])
def test_an_interruption_anywhere_leaves_nothing(name: str, tmp_path: Path) -> None:
    if name in ("cat.mp4", "cat.webm"):
        pytest.importorskip("av")
    (tmp_path / "once").mkdir()
    total = lines_of(writing(tmp_path / "once" / name))
    whole = {path.name: path.stat().st_size for path in (tmp_path / "once").rglob("*") if path.is_file()}
    assert total > 100
    assert whole
    for line in range(1, total + 1, 2):
        (folder := tmp_path / str(line)).mkdir()
        came = pressed_at(line, writing(folder / name))
        assert came or line > total - 20  # waiting for the thread takes some lines more or fewer
        assert threads() == [], f"line {line} of {total}"
        left = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        assert left in ({}, whole), f"line {line} of {total}"
        assert left or list(folder.iterdir()) == [], f"line {line} of {total}"


def test_a_writer_that_is_dropped_ends_its_thread(tmp_path: Path) -> None:
    writer = BackgroundWriter(sink_for(tmp_path / "frames", (16, 16), 16)).__enter__()
    writer.write(FRAMES)
    assert threads() == ["turbotrt-encode"]
    del writer
    gc.collect()
    assert threads() == []
    assert list(tmp_path.iterdir()) == []
