"""One caller of a pipeline at a time, whatever interrupts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plugins.errors import UserError
from plugins.interrupts import Exclusive


@contextmanager
def one_caller(callers: Exclusive) -> Iterator[None]:
    """Hold a pipeline for a block. Raises UserError where another call does."""
    mine = object()
    try:
        if not callers.take(mine):
            raise UserError(
                "This pipeline is in use by another call.",
                expected="one caller at a time",
                remedy="wait for the other call, or load a second pipeline",
            )
        try:
            yield
        finally:
            callers.give(mine)
    finally:
        callers.give(mine)  # again: Ctrl-C may have come before it was given
