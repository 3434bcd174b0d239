"""``turbotrt generate``, ``plan`` and ``bench``: running a bundle. They work on the base install, without torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.command import Command, Group, JsonOption, console
from exporter.progress import RichProgress
from plugins.errors import UserError

BundleOption = Annotated[Path, typer.Option("--bundle", metavar="DIR", help="A folder that turbotrt export wrote.")]
VramOption = Annotated[
    str | None,
    typer.Option(
        "--vram", metavar="SIZE",
        help="The most device memory to use, such as 12GB or 11.5GiB; weights that do not fit stream. "
        "[dim]\\[default: what is free][/]",
    ),
]  # fmt: skip
BackendOption = Annotated[
    str,
    typer.Option("--backend", metavar="NAME", help="auto is tensorrt, the bundle's engines; torch needs the export "
                 "extra: compiled plans on CUDA, references on the CPU."),
]  # fmt: skip
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Pixels. [dim]\\[default: the model's][/]")
]
FramesOption = Annotated[int | None, typer.Option("--frames", help="4n+1. [dim]\\[default: the model's][/]")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="1 to 4. [dim]\\[default: the model's][/]")]
OdeOption = Annotated[bool, typer.Option("--ode", help="Deterministic updates: no fresh noise at each step.")]
NoVerifyOption = Annotated[bool, typer.Option("--no-verify", help="Do not compare the files with their sha256.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) of "832x480"; None stays None. Raises UserError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+)[x×]([0-9]+)", text.strip().lower())
    if match is None:
        raise UserError("--size cannot be read.", expected="WIDTHxHEIGHT in pixels, such as 832x480", got=text)
    return int(match[1]), int(match[2])


def plan(
    bundle: BundleOption,
    vram: VramOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    steps: StepsOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say what a run would keep in device memory and what it would stream, without loading anything.

    Needs neither a GPU nor weights; --backend torch plans for the device here. Without --vram: everything resident.
    Text encoder, DiT and VAE run one after the other, so that the largest part counts.

    Example: turbotrt plan --bundle engines/wan2.1-14b-720p-rtx5090 --vram 12GB
    """
    from runtime.backends.registry import backend_kind
    from runtime.bundle import load_manifest
    from runtime.byte_sizes import gigabytes, parse_bytes
    from runtime.media.parts import bundle_parts, plan_parts

    manifest, kind = load_manifest(bundle), backend_kind(backend)
    budget = None if vram is None else parse_bytes(vram)
    parts = bundle_parts(manifest, kind)
    asked: dict[str, Any] = {"vram": budget, "size": parse_size(size), "frames": frames, "steps": steps}
    made = plan_parts(manifest, kind, parts, **asked)
    if as_json:
        listed = [{"part": part.name, "peak_bytes": part.peak, "how": part.how} for part in made.parts]
        typer.echo(json.dumps({**made.dit.plain(), "parts": listed, "source": kind.source}, indent=2))
        return
    for line in made.lines():
        typer.echo(line)
    typer.echo(f"The DiT: {made.dit.lines()[0]}")
    for line in made.dit.lines()[1:]:
        typer.echo(line)
    typer.echo(f"  smallest budget that works: {gigabytes(made.dit.smallest)}; the CUDA context comes on top")
    typer.echo(f"  by {kind.source}")


bench_app = typer.Typer(cls=Group)


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    bundle: Annotated[Path | None, typer.Option("--bundle", metavar="DIR", help="The bundle to run.")] = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    steps: StepsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Generations timed, after one that is not.")] = 3,
    vram: VramOption = None,
    backend: BackendOption = "auto",
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
    pixels = parse_size(size)
    from runtime.bench import bench as measure
    from runtime.pipeline import Pipeline

    loading: dict[str, Any] = {"vram": vram, "backend": backend, "size": pixels, "frames": frames, "steps": steps}
    with Pipeline.load(bundle, verify=not no_verify, report=RichProgress(), **loading) as pipe:
        found = measure(pipe, size=pixels, frames=frames, steps=steps, repeats=repeats)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
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


def register(app: typer.Typer) -> None:
    """Add the three commands to the command line."""
    from exporter.cli_generate import generate

    app.command(cls=Command)(generate)
    app.command(cls=Command)(plan)
    app.add_typer(bench_app, name="bench")
