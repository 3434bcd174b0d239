"""``turbotrt bench media``: how long text encoder and VAE take, beside what others take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli.options import JsonOption, ModelOption
from exporter.progress import RichProgress
from exporter.terminal import console, say
from plugins.errors import UserError

if TYPE_CHECKING:
    import torch

    from exporter.models import ModelSpec


def place_and_sizes(spec: ModelSpec) -> tuple[torch.device, list[tuple[int, int, int]]]:
    """Where a model's other parts are timed, and at which latents: 480p and its own size. UserError without a GPU."""
    import torch

    cuda = torch.cuda.is_available()
    if not cuda and spec.name != "wan-tiny":
        raise UserError(
            f"{spec.name}'s text encoder and VAE are timed on a GPU.",
            expected="a CUDA device",
            got="none",
            remedy="run it there, or --model wan-tiny here",
        )
    pixels = dict.fromkeys([(832, 480), spec.size] if spec.name != "wan-tiny" else [spec.size])
    return torch.device("cuda" if cuda else "cpu"), [spec.latent_shape(size) for size in pixels]


def bench_media(
    model: ModelOption,
    repeats: Annotated[int, typer.Option(min=1, help="Runs timed, after one that is not; the best counts.")] = 3,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures there too, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time text encoder and VAE with random weights, beside transformers and diffusers where they are installed.

    On the GPU at hand, at 480p and at the model's size; wan-tiny runs on the CPU too. Peaks are torch's.

    Example: turbotrt bench media --model wan2.2-i2v-a14b-720p --out media.json
    """
    from exporter.bench import media as bench
    from exporter.models import model_named
    from runtime.atomic import check_place, told, write_atomic

    spec = model_named(model)
    device, sizes = place_and_sizes(spec)
    if out is not None:
        check_place(out)
    found = bench.bench_media(spec, sizes, device, repeats, RichProgress())
    if out is not None:
        with told(out):
            write_atomic(out, json.dumps(found, indent=2).encode())
    if as_json:
        say(json.dumps(found, indent=2))
        return
    from rich.table import Table

    table = Table(title=f"{found['model']} on {found['device']}, torch {found['torch']}, random weights")
    for heading in ("task", "", "seconds", "peak GB", "times faster", "distance"):
        table.add_column(heading, justify="left" if heading in ("task", "") else "right")
    for row in bench.lines(found):
        table.add_row(*row)
    console().print(table)
