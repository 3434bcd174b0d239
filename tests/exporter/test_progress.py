"""Progress: bars on a terminal, lines elsewhere, and a record for tests."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from exporter.progress import RichProgress
from tests.support.progress import SilentProgress


def test_bars_nest_and_take_no_markup() -> None:
    out = io.StringIO()
    progress = RichProgress(Console(file=out, force_terminal=True, width=100))
    with progress.stage("outer [/]") as update:
        update(1, 2)
        with progress.stage("inner") as inner:
            inner(3, 4)
            progress.note("a [note]")
    with progress.stage("after"):
        pass
    for text in ("outer [/]", "inner", "a [note]", "after", "100%"):
        assert text in out.getvalue()


def test_a_failed_stage_leaves_the_terminal_usable() -> None:
    progress = RichProgress(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(KeyboardInterrupt), progress.stage("fails"):
        raise KeyboardInterrupt
    with progress.stage("works") as update:
        update(1, 1)


def test_a_log_gets_one_line_a_stage() -> None:
    out = io.StringIO()
    with RichProgress(Console(file=out, force_terminal=False)).stage("trace block") as update:
        update(1, 2)
    assert out.getvalue().startswith("trace block: ")
    assert out.getvalue().count("\n") == 1


def test_silent_progress_records() -> None:
    progress = SilentProgress()
    with progress.stage("one") as update:
        update(1, 2)
        update(2, 2)
    progress.note("said")
    assert (progress.titles, progress.notes, progress.updates) == (["one"], ["said"], {"one": (2, 2)})
