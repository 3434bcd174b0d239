"""A fork of this process that is killed in the middle of its work: no cleaning up of Python's runs in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def forked(work: Callable[[Callable[[], None]], object]) -> Iterator[int]:
    """The id of a fork that runs ``work`` and has come to where that calls its argument; killed with SIGKILL."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda: (os.write(told, b"x"), signal.pause()))  # type: ignore[arg-type, func-returns-value]
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"x", "it ended before it came there"
        yield child
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
