"""Ctrl-C that comes while something is cleaned up: held back, and what it kept from beginning is done later."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that is soon over and that Ctrl-C does not break: it is raised at the end.

    Python raises KeyboardInterrupt in the main thread alone: elsewhere, and where SIGINT is not Python's, nothing is
    held back.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: pressed.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            before(signal.SIGINT, pressed[0])


class Ending:
    """What must be done once at the end of an object's use: when called, else with the object's last reference.

    Ctrl-C does not break it. Where it comes just before, the last reference does it: ``function`` and its arguments
    know nothing of the owner. ``atexit``: at the end of the process too. A forked child inherits it and does nothing:
    files, locks and devices are its parent's.
    """

    def __init__(self, owner: object, function: Callable[..., object], *args: object, atexit: bool = True) -> None:
        self._function, self._args, self._process = function, args, os.getpid()
        self.done = False
        self._last = weakref.finalize(owner, self)
        self._last.atexit = atexit

    def __call__(self) -> None:
        with uninterrupted():
            if not self.done and os.getpid() == self._process:
                try:
                    self._function(*self._args)
                finally:
                    self.done = True
                    self._last.detach()  # Ctrl-C that comes while Python drops an object is lost


class Exclusive:
    """One holder at a time, known by an object of its own: it can be given back twice, and by nobody else.

    So who gives it back again after Ctrl-C, which may have come just before, does no harm.
    """

    def __init__(self) -> None:
        self._holder: dict[str, object] = {}

    def take(self, mine: object) -> bool:
        """Whether it is this object's now; it is at once, or not at all."""
        return self._holder.setdefault("holder", mine) is mine  # one step for all threads

    def give(self, mine: object) -> None:
        """Let the next one have it, if it is this object's."""
        if self._holder.get("holder") is mine:
            self._holder.clear()
