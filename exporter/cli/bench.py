"""``turbotrt bench``: a bundle's stages timed. It works on the base install, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.cli.command import Group, typed
from exporter.cli.options import (
    BackendOption,
    FramesOption,
    JsonOption,
    NoVerifyOption,
    SizeOption,
    StepsOption,
    VerifyOption,
    VramOption,
    parse_frames,
    parse_size,
    parse_verify,
)
from exporter.progress import RichProgress
from exporter.terminal import console, say
from plugins.errors import UserError

bench_app = typer.Typer(cls=Group)


@bench_app.callback(invoke_without_command=True)
@typed
def bench(
    context: typer.Context,
    bundle: Annotated[Path | None, typer.Option("--bundle", metavar="DIR", help="The bundle to run.")] = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    steps: StepsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Generations timed, after one that is not.")] = 3,
    vram: VramOption = None,
    backend: BackendOption = "auto",
    verify: VerifyOption = "auto",
    no_verify: NoVerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time a bundle's stages with random embeddings: a warm-up apart, then the given number of generations.

    Example: turbotrt bench --bundle engines/wan2.1-1.3b-480p-h200 --backend torch --json
    """
    if context.invoked_subcommand is not None:
        return
    if bundle is None:
        raise UserError("bench needs a bundle.", remedy="give --bundle DIR")
    pixels, frames = parse_size(size), parse_frames(frames)
    from runtime.bench import bench as measure
    from runtime.pipeline import Pipeline

    loading: dict[str, Any] = {"vram": vram, "backend": backend, "size": pixels, "frames": frames, "steps": steps}
    loading["verify"] = parse_verify(verify, no_verify=no_verify)
    with Pipeline.load(bundle, report=RichProgress(), **loading) as pipe:
        found = measure(pipe, size=pixels, frames=frames, steps=steps, repeats=repeats)
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    seconds = ", ".join(f"{value:.2f} s" for value in found["generation_seconds"])
    title = f"{found['model']} on {found['device']}, L = {found['tokens']:,}, {found['steps']} steps"
    table = Table(title=title, caption=f"generations {seconds}; the first, apart, {found['warm_up_seconds']:.2f} s")
    for heading in ("stage", "runs", "mean ms", "median ms", "max ms", "s in a generation"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in found["stages"]:
        figures = (f"{row[key]:.3f}" for key in ("mean_ms", "median_ms", "max_ms", "seconds"))
        table.add_row(row["stage"], str(row["runs"]), *figures)
    console().print(table)
