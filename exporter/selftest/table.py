"""A selftest on the terminal: what was tested by bundle and host, the times, and every failure in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from exporter.selftest.plan import PARTS
from exporter.selftest.rows import Machine, Report, Row
from runtime.byte_sizes import gigabytes

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}
_DETAIL = 12  # lines of what a failed row says on the terminal; the JSON file has all


def show(console: Console, report: Report, file: Path) -> None:
    """Everything that was found."""
    if report.machine is not None:
        for line in machine_lines(report.machine):
            console.print(line)
    console.print(_overview(report))
    if times := [row for row in report.rows if row.part == "times" and row.status == "passed"]:
        console.print(_times(times))
    if starts := [row for row in report.rows if row.part in ("cold", "warm") and row.figures]:
        console.print(_starts(starts))
    for row in report.failed:
        for line in failure_lines(row):
            console.print(line, soft_wrap=True)
    for note in report.notes:
        console.print(note, soft_wrap=True)
    console.print(verdict(report, file), soft_wrap=True)


def machine_lines(machine: Machine) -> Iterator[str]:
    """What was tested on, as one reads it."""
    if machine.gpu is None or machine.sm is None:
        yield f"No GPU: {machine.why_not}"
    else:
        memory = "" if machine.memory_bytes is None else f", {gigabytes(machine.memory_bytes)}"
        driver = "" if machine.driver is None else f"driver {machine.driver}, "
        yield f"{machine.gpu}, sm_{machine.sm}{memory}; {driver}CUDA {machine.cuda}"
    yield ", ".join([*(f"{k} {v}" for k, v in machine.packages.items()), f"Python {machine.python}", machine.system])
    if machine.plugin_library is not None:
        yield f"plugin library: {machine.plugin_library}"


def verdict(report: Report, file: Path) -> str:
    """The last line."""
    passed = sum(row.status == "passed" for row in report.rows)
    counts = f"{passed} passed, {len(report.failed)} failed, {len(report.rows) - passed - len(report.failed)} left out"
    how = report.ended.upper() if report.ended != "finished" else "PASSED" if report.passed else "FAILED"
    return f"{how}: {counts}, in {report.seconds:.0f} s. All of it is in {file}: attach that to a report."


def _overview(report: Report) -> Table:
    """A line for each part, bundle and host."""
    table = Table(title="selftest", title_justify="left")
    for heading, right in (
        ("part", False),
        ("bundle", False),
        ("ops run by", False),
        ("rows", True),
        ("nearest to its bound", False),
        ("error", True),
        ("bound", True),
        ("s", True),
        ("", False),
    ):
        table.add_column(heading, justify="right" if right else "left")
    for (part, variant, host), found in groupby(report.rows, lambda row: (row.part, row.variant, row.host)):
        rows = list(found)
        worst = max((row for row in rows if row.error is not None), key=lambda row: row.share, default=None)
        status = next((kind for kind in ("failed", "skipped") if any(row.status == kind for row in rows)), "passed")
        table.add_row(
            part,
            variant or "–",
            host or "–",
            str(len(rows)),
            "–" if worst is None else worst.name,
            _figure(None if worst is None else worst.error),
            _figure(None if worst is None else worst.bound),
            f"{sum(row.seconds or 0 for row in rows):.1f}",
            _counted(rows, status),
            style=_STYLES[status] if status != "passed" else None,
        )
    return table


def _counted(rows: list[Row], status: str) -> str:
    if status == "passed":
        return "passed"
    count = sum(row.status == status for row in rows)
    return f"{count} {'left out' if status == 'skipped' else status}"


def _figure(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"


def _times(rows: Iterable[Row]) -> Table:
    table = Table(title="times on random weights, beside the estimate", title_justify="left")
    for heading in ("model", "ops run by", "video"):
        table.add_column(heading)
    for heading in ("block ms", "estimated", "ratio", "step ms", "estimated", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = []
        for what in ("block", "step"):
            measured, estimated = row.figures[f"{what}_ms"], row.figures[f"estimated_{what}_ms"]
            ratio = "–" if not measured or not estimated else f"{measured / estimated:.2f}"
            cells += [*("–" if value is None else f"{value:.2f}" for value in (measured, estimated)), ratio]
        table.add_row(row.variant, row.host, row.name, *cells)
    return table


def _starts(rows: Iterable[Row]) -> Table:
    table = Table(title="starts: RTX compiles at the first one", title_justify="left")
    table.add_column("start")
    for heading in ("load s", "first video s", "compiled MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = {name: value or 0.0 for name, value in row.figures.items()}
        cells = (figures["load_seconds"], figures["first_seconds"], figures["cache_bytes"] / 1e6)
        table.add_row(row.name, *(f"{value:.2f}" for value in cells))
    return table


def failure_lines(row: Row) -> Iterator[str]:
    """A failed row in full: where, what, how far, and the last words."""
    place = " · ".join(filter(None, (PARTS[row.part], row.variant, row.host and f"ops by {row.host}", row.name)))
    yield f"FAILED {place}"
    named = {"stage": row.stage, "op": row.op, "tensor": row.tensor}
    if said := ", ".join(f"{kind} {name}" for kind, name in named.items() if name):
        yield f"  {said}"
    if row.error is not None:
        bound = "" if row.bound is None else f", at most {row.bound:.1e} is right"
        yield f"  relative L2 {row.error:.3e}{bound}"
    lines = row.detail.splitlines()
    yield from (f"  {line}" for line in lines[:_DETAIL])
    if row.last_words:
        yield "  last words:"
        yield from (f"    {line}" for line in _told(row.last_words))


def _told(words: Sequence[str]) -> Sequence[str]:
    """The last lines, or the first of what a crash left: there the innermost call comes first."""
    crash = next((i for i, line in enumerate(words) if line.startswith("Fatal Python error")), None)
    return words[-_DETAIL:] if crash is None else words[crash : crash + _DETAIL]
