"""``turbotrt list`` and ``inspect``: the tables of models and GPUs, and what a bundle holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from exporter.cli.options import (
    JsonOption,
)
from exporter.progress import RichProgress
from exporter.terminal import console, say


def list_(as_json: JsonOption = False) -> None:
    """List the models and GPUs: sizes, tokens, weights, VRAM, where engines can be built, which plugins they get."""
    from exporter.cli import catalogue

    if as_json:
        say(json.dumps(catalogue.catalogue(), indent=2))
    else:
        catalogue.show_catalogue(console())


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that turbotrt export wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Show a bundle and verify its files against the manifest; status 1 if anything is wrong with them.

    Example: turbotrt inspect engines/wan2.1-14b-720p-rtx5090
    """
    from exporter.cli.inspection import inspect_bundle, show_inspection

    found = inspect_bundle(bundle, RichProgress())
    if as_json:
        say(json.dumps(found.plain(), indent=2))
    else:
        show_inspection(console(), found)
    if found.problems:
        raise typer.Exit(1)
