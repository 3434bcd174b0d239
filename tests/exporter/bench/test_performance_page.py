"""docs/performance.md has the committed measurements, and none that were not made."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from exporter.bench import published
from exporter.bench.measured import Run, runs
from exporter.bench.roofline import limit
from exporter.gpus import GPUS
from plugins.cost import Cost, cost
from plugins.registry import OPS
from tests.support.estimates import PLACES, TABLES, parts
from tests.support.kernel_bounds import shared_rows
from tests.support.paths import ROOT
from tests.support.shared import Shared

PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def measured(model: str) -> Run:
    (run,) = (run for run in runs() if (run.gpu, run.model, run.portable) == ("h200", model, False))
    return run


def costs(run: Run) -> list[tuple[str, dict[str, int], Cost, float]]:
    """(op, dims, cost, ms) of the calls as long as the video."""
    long = max(entry.dims.get("L", 0) for entry in run.kernels)
    return [
        (entry.op, entry.dims, cost(OPS[entry.op], entry.dims, entry.attributes), entry.ms)
        for entry in run.kernels
        if long in (entry.dims.get("L"), entry.dims.get("M"))
    ]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table rows under a heading."""
    text = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_each_op_of_the_block_is_as_committed() -> None:
    listed = [row for row in rows("One H200: the blocks") if len(row) == 7 and row[0].split()[0].rstrip(",") in OPS]
    got = [(row[0].split()[0].rstrip(","), row[2], row[4], row[5], row[6]) for row in listed]
    want = []
    for op, _, needs, ms in costs(measured("wan2.1-14b-720p")):
        least = limit(needs, GPUS["h200"]).ms
        want.append(
            (op, f"{needs.bytes / 1e9:.2f}", f"{least:.2f}", f"{ms:.2f}", f"{least / ms:.0%}".replace("%", " %"))
        )
    assert got == want


def test_the_summary_is_as_committed() -> None:
    table = {row[0]: row[1:] for row in rows("One H200: the blocks") if len(row) == 3}
    for column, model in enumerate(("wan2.1-1.3b-480p", "wan2.1-14b-720p")):
        run = measured(model)
        tops = {(op, dims["K"], dims["N"]): needs.total / ms / 1e9 for op, dims, needs, ms in costs(run) if "N" in dims}
        d, f = min(k for _, k, _ in tops), max(k for _, k, _ in tops)
        for label, key in (
            ("BlockInt8Gemm D×D", ("BlockInt8Gemm", d, d)),
            ("with GELU and quantization, F×D", ("BlockInt8GemmGelu", d, f)),
            ("with gate and residual, D×F", ("BlockInt8GemmResidual", f, d)),
        ):
            assert table[label][column] == f"{tops[key]:,.0f} TOPS", label
        step = table["blocks of one step"][column]
        seconds = step.endswith(" s")
        assert float(step.split()[0]) == round((run.step_ms or 0) / (1e3 if seconds else 1), 2 if seconds else 0)


@pytest.fixture(scope="module")
def made(shared: Shared) -> dict[str, list[str]]:
    """The tables of today. Another test needs these kernels too: Triton finds them compiled."""
    shared_rows(shared, GPUS[published.GPU].cubin_sm)
    return {name: table() for name, table in TABLES.items()}


@pytest.mark.parametrize("place", PLACES)
def test_the_tables_of_rtx_parts_are_estimates_of_today(place: str, made: dict[str, list[str]]) -> None:
    """Figures may be off by 3 %: releases of ptxas schedule a little differently."""
    text = (ROOT / place).read_text(encoding="utf-8")
    for name in PLACES[place]:
        got = parts(text, name)[1].strip().splitlines()
        assert [shape(line) for line in got] == [shape(line) for line in made[name]], NEWS
        for old, new in zip(figures(got), figures(made[name]), strict=True):
            assert old == pytest.approx(new, rel=Decimal("0.03"), abs=_last_place(new)), NEWS


NEWS = "run python -m tests.support.estimates"
_FIGURE = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?=[ |×]|$)")


def shape(line: str) -> str:
    return _FIGURE.sub("#", line)


def figures(lines: list[str]) -> list[Decimal]:
    return [Decimal(text.replace(",", "")) for line in lines for text in _FIGURE.findall(line)]


def _last_place(figure: Decimal) -> Decimal:
    return Decimal(1).scaleb(int(figure.as_tuple().exponent))


def test_a_figure_that_is_no_longer_so_is_seen() -> None:
    old, new = (
        "| BlockInt8Gemm 75,600×5,120 | 5.25 ms, 755 TOPS | 59 % |  |",
        "| BlockInt8Gemm 75,600×5,120 | 5.55 ms |",
    )
    assert shape(old) == "| BlockInt8Gemm #×# | # ms, # TOPS | # % |  |"
    assert figures([old]) == [75600, 5120, Decimal("5.25"), 755, 59]
    assert figures([new])[2] != pytest.approx(
        figures([old])[2], rel=Decimal("0.03"), abs=_last_place(figures([old])[2])
    )


def test_what_is_said_of_rtx_parts_is_said_to_be_estimated() -> None:
    text = " ".join(PAGE.split())
    assert "**Estimated by proxy; nothing was ever executed on an RTX part.**" in text
    for name, seconds in published.SECONDS.items():
        assert re.search(rf"^\| {re.escape(name)} \| [\d.]+ s \| {seconds:.1f} s \|$", PAGE, re.MULTILINE)
