"""Reports on a terminal: bars, or lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console

from exporter.terminal import console as made_console
from exporter.terminal import printable
from plugins.interrupts import uninterrupted
from runtime.report import Update


class RichProgress:
    """Bars on a terminal; elsewhere (a log, a pipe) one line for each finished stage."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or made_console(error=True)
        self._bars: bars.Progress | None = None
        self._depth = 0

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        started = time.monotonic()
        if not self._console.is_terminal:
            yield lambda done, total: None
            self.note(f"{title}: {time.monotonic() - started:.1f} s")
            return
        self._depth += 1
        try:
            display = self._display()
            task = display.add_task(printable(title), total=None)
            yield lambda done, total: display.update(task, completed=done, total=total)
            last = next(t.total for t in display.tasks if t.id == task) or 1
            display.update(task, completed=last, total=last)
            display.stop_task(task)
        finally:
            self._leave()

    def note(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _display(self) -> bars.Progress:
        """The display shared by nested stages: rich shows one at a time."""
        if self._bars is None:
            self._bars = bars.Progress(
                bars.TextColumn("{task.description}", markup=False),
                bars.BarColumn(bar_width=30),
                bars.TaskProgressColumn(),
                bars.TimeElapsedColumn(),
                console=self._console,
            )
            with uninterrupted():  # it starts a thread
                self._bars.start()
        return self._bars

    def _leave(self) -> None:
        with uninterrupted():
            self._depth -= 1
            if self._depth == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None
