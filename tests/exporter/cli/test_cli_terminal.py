"""What the command line prints for terminals of other widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.cli.catalogue import show_catalogue
from exporter.gpus import GPUS
from exporter.models import MODELS


def test_list_is_whole_in_a_terminal_of_80_columns() -> None:
    narrow = Console(width=80, file=io.StringIO())
    show_catalogue(narrow)
    text = narrow.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert {*MODELS, *GPUS} <= set(text.split())


def test_help_flows_with_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer keeps the docstring's line ends in all but the first paragraph, which a wider terminal would show."""
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line.strip() for line in CliRunner().invoke(app, ["plan", "--help"]).output.splitlines()]
    assert any(line.startswith("Needs neither") and "the largest part counts." in line for line in lines)


def test_version() -> None:
    from importlib.metadata import version

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.splitlines()[0]) == (0, f"turbotrt {version('turbotrt')}")
