"""How long work tells what it does: one protocol for the runtime and the exporter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Update = Callable[[int, int], None]  # (done, total), in any unit of the stage's own


class Report(Protocol):
    """What long work may say; ``stage`` yields the function that moves its bar."""

    def stage(self, title: str) -> AbstractContextManager[Update]: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A report nobody reads."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        yield lambda done, total: None

    def note(self, text: str) -> None:
        pass
