"""``turbotrt bench vae``: where the VAE's time goes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from exporter.cli.bench_media import place_and_sizes
from exporter.cli.options import JsonOption, ModelOption
from exporter.progress import RichProgress
from exporter.terminal import console, say


def bench_vae(
    model: ModelOption,
    repeats: Annotated[int, typer.Option(min=1, help="Chunks timed, after three that are not; medians count.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Time the VAE's decoder by layer, with random weights, beside what memory and tensor cores allow.

    One chunk of four frames on the GPU at hand, as the torch backend decodes it, at 480p and at the model's size;
    wan-tiny runs on the CPU too. Bytes count each tensor of a layer once.

    Example: turbotrt bench vae --model wan2.1-14b-720p
    """
    from exporter.bench.vae_layers import bench_layers, lines
    from exporter.models import model_named

    spec = model_named(model)
    device, sizes = place_and_sizes(spec)
    found = bench_layers(spec, [size[1:] for size in sizes], device, repeats, RichProgress())
    if as_json:
        say(json.dumps(found, indent=2))
        return
    from rich.table import Table

    ceilings = f"{found['bandwidth_gb_s']:,.0f} GB/s and {found['bf16_tflops']:.0f} TFLOPS measured"
    for size in found["sizes"]:
        table = Table(title=f"{size['size']}, {found['device']}, torch {found['torch']}", caption=ceilings)
        for heading in ("layer", "calls", "GB", "TFLOP", "ms at the limit", "ms", "times the limit"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for row in lines(size["rows"]):
            table.add_row(*row)
        console().print(table)
