"""Ctrl-C at a chosen line of the sources, by a real SIGINT: where it may come, it is tried."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.support.paths import ROOT

_OURS = tuple(str(ROOT / package) for package in ("exporter", "plugins", "runtime"))


def lines_of(work: Callable[[], object]) -> int:
    """How many lines of ours the main thread runs in ``work``."""
    return _run(work, None)[0]


def pressed_at(line: int, work: Callable[[], object]) -> bool:
    """Run ``work`` with Ctrl-C before its line of that number, counted from 1; whether it came so far.

    Raises AssertionError where no KeyboardInterrupt came of it. Nothing of that is alive afterwards, as when a command
    has ended.
    """
    count, interrupted = _run(work, line)
    gc.collect()
    assert interrupted == (count >= line), f"line {line}: Ctrl-C was lost"
    return interrupted


def _run(work: Callable[[], object], press: int | None) -> tuple[int, bool]:
    count = 0

    def local(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == press:
                sys.settrace(None)
                frame.f_trace = None
                signal.raise_signal(signal.SIGINT)
                return None
        return local

    def begin(frame: FrameType, _: str, __: object) -> Any:
        return local if frame.f_code.co_filename.startswith(_OURS) else None

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        work()
        return count, False
    except KeyboardInterrupt:
        return count, True
    finally:
        sys.settrace(before)
