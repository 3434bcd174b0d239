"""What a comparison says in few lines: one line for each level and pair, and the worst offenders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.compare.spec import LEVELS, Comparison, Row, Sweep

SHOWN_OFFENDERS = 12
_METRIC_TEXT = {
    "relative_l2": "relative L2",
    "cosine": "cosine",
    "max_abs": "max |Δ|",
    "snr_db": "SNR",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
}


@dataclass(frozen=True)
class Line:
    """One level of one pair: how many were compared, how many are over their bounds, and the worst."""

    level: str
    candidate: str
    reference: str
    count: int
    failed: int
    worst: Row


def lines(found: Comparison) -> list[Line]:
    """In the order of the levels."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in found.rows:
        groups.setdefault((row.level, row.candidate, row.reference), []).append(row)
    order = list(LEVELS)
    return [
        Line(*key, len(rows), sum(not row.passed for row in rows), max(rows, key=lambda row: row.badness))
        for key, rows in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]


def where(row: Row) -> str:
    """Op, block, step or frame, with the block's number where it is an op's."""
    return f"block {row.layer}, {row.place}" if row.level == "op" else row.place


def metric(name: str, value: float) -> str:
    """The value as a report shows it."""
    if math.isnan(value):
        return "NaN"
    if name.endswith("_db"):
        return "exact" if value == math.inf else f"{value:.1f} dB"
    return "0" if value == 0 else f"{value:.4f}" if name in ("cosine", "ssim") else f"{value:.2e}"


def metric_name(name: str) -> str:
    return _METRIC_TEXT[name]


def first_metric(row: Row) -> str:
    return metric(next(iter(row.metrics)), row.value)


def bound_text(row: Row) -> str:
    """ "≤ 8e-02" or "≥ 20 dB"."""
    if row.bound is None:
        return ""
    return f"≥ {row.bound:g} dB" if row.higher_is_better else f"≤ {row.bound:g}"


def offenders(found: Comparison) -> Sequence[Row]:
    return found.offenders[:SHOWN_OFFENDERS]


def show(console: Console, found: Comparison) -> None:
    """The short table on the terminal: offenders first, the verdict last."""
    if found.offenders:
        console.print(_offender_table(found))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("level", "candidate", "against", "compared", "worst", "bound", "where", ""):
        table.add_column(heading, justify="right" if heading in ("compared", "worst") else "left")
    for line in lines(found):
        mark = Text("ok", "green") if not line.failed else Text(f"{line.failed} over", "bold red")
        worst = line.worst
        table.add_row(
            line.level,
            line.candidate,
            line.reference,
            str(line.count),
            first_metric(worst),
            bound_text(worst),
            where(worst),
            mark,
        )
    console.print(table)
    for name, reason in found.left_out.items():
        console.print(f"left out: {name}: {reason}")
    for note in found.notes:
        console.print(note)
    if found.sweep is not None:
        console.print(_sweep_table(found.sweep))
    over = len(found.offenders)
    verdict = f"{over} of {len(found.rows)} are over their bounds" if over else f"all {len(found.rows)} within bounds"
    console.print(Text(verdict, "bold red" if over else "bold green"))


def _offender_table(found: Comparison) -> Table:
    table = Table(box=None, header_style="bold red", pad_edge=False, title="over the bounds, the worst first")
    for heading in ("where", "level", "candidate", "against", "measured", "bound", "times"):
        table.add_column(heading)
    for row in offenders(found):
        times = "∞" if math.isinf(row.badness) else f"{row.badness:.1f}"
        table.add_row(where(row), row.level, row.candidate, row.reference, first_metric(row), bound_text(row), times)
    return table


def seconds_text(seconds: float | None) -> str:
    """The time of a step as a report shows it; a dash where there is none."""
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _sweep_table(sweep: Sweep) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, caption=sweep.untimed, caption_justify="left")
    for heading in ("top-k", "PSNR", "SSIM", "relative L2", sweep.time_label):
        table.add_column(heading, justify="right")
    for point in sweep.points:
        table.add_row(
            f"{point.topk_milli / 1000:g}",
            metric("psnr_db", point.psnr_db),
            metric("ssim", point.ssim),
            metric("relative_l2", point.relative_l2),
            seconds_text(point.seconds),
        )
    return table
