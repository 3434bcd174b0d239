"""A report for tests: it shows nothing and keeps what it was told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.report import Update


class SilentProgress:
    """Shows nothing; keeps titles, notes and the last (done, total) of each stage."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.notes: list[str] = []
        self.updates: dict[str, tuple[int, int]] = {}

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        self.titles.append(title)

        def update(done: int, total: int) -> None:
            self.updates[title] = (done, total)

        yield update

    def note(self, text: str) -> None:
        self.notes.append(text)
