"""``turbotrt bench generate``: seconds from a prompt to a video, by the command line and in a resident program."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from exporter.cli.options import JsonOption
from exporter.progress import RichProgress
from exporter.terminal import console, say
from plugins.errors import UserError


def bench_generate(
    model: Annotated[
        list[str], typer.Option("--model", metavar="MODEL", help="As turbotrt list names it; may be given again.")
    ],
    repeats: Annotated[int, typer.Option(min=1, help="Runs timed, after two that are not; the median counts.")] = 3,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where bundles of random weights go for the time, up to 28 GB. [dim]\\[default: a temporary one][/]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures there too, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time whole videos with random weights of full size: fresh processes, a resident pipeline, verification.

    By the torch backend, on the GPU at hand; wan-tiny runs on the CPU too. "must" and "aim" are what the project set
    itself for one H100 and 16 cores.

    Example: turbotrt bench generate --model wan2.1-1.3b-480p --model wan2.1-14b-720p --out generate.json
    """
    import torch

    from exporter.bench import generate as bench
    from exporter.models import model_named
    from runtime.atomic import check_place, told, write_atomic

    models = [model_named(name) for name in model]
    cuda = torch.cuda.is_available()
    for one in models:
        if not cuda and one.name != "wan-tiny":
            raise UserError(
                f"{one.name}'s videos are timed on a GPU.",
                expected="a CUDA device",
                got="none",
                remedy="run it there, or --model wan-tiny here",
            )
    if out is not None:
        check_place(out)
    with tempfile.TemporaryDirectory(dir=folder, prefix="turbotrt-bench-") as made, _own_cache(Path(made)):
        rows = bench.bench_generate(models, repeats, Path(made), RichProgress())
    machine = {"device": torch.cuda.get_device_name() if cuda else "CPU", "cores": len(os.sched_getaffinity(0))}
    found = {**machine, "torch": torch.__version__, "repeats": repeats, "rows": rows}
    if out is not None:
        with told(out):
            write_atomic(out, json.dumps(found, indent=2).encode())
    if as_json:
        say(json.dumps(found, indent=2))
        return
    from rich.table import Table

    table = Table(title=f"{found['device']}, {found['cores']} cores, torch {found['torch']}, random weights; seconds")
    for heading in ("", "model", "median", "runs", "must", "aim"):
        table.add_column(heading, justify="left" if heading in ("", "model") else "right")
    for row in bench.lines(rows):
        table.add_row(*row)
    console().print(table)


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """For this process and those that it starts: nothing of these bundles stays in the user's cache."""
    from runtime.user_cache import VARIABLE

    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
