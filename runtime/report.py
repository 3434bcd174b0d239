"""How long work tells what it does: one protocol for the runtime and the exporter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

Update = Callable[[int, int], None]


class Report(Protocol):
    """How loading tells what it does; ``stage`` yields the function that moves its bar."""

    def stage(self, title: str) -> AbstractContextManager[Update]: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A report nobody reads."""

    @contextmanager
    def stage(self, title: str) -> Any:
        yield lambda done, total: None

    def note(self, text: str) -> None:
        pass
