"""``turbotrt compare``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, cast

import typer

from exporter.command import CHECKPOINT_HELP, JsonOption, console
from exporter.progress import RichProgress
from exporter.spec import parse_topk
from plugins.errors import UserError

_HELP_AGAINST = (
    "Who takes part, comma-separated or repeated: fp32 (the checkpoint in plain PyTorch), quantized (the bundle's "
    "weights, reference ops), onnx, plans (compiled kernels, needs a GPU), tensorrt (engines, needs their GPU). "
    "[dim]\\[default: all that this machine can run][/]"
)


def compare(
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="A folder that turbotrt export wrote.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="PATH|HF_ID", help=CHECKPOINT_HELP + " Without it the bundle is compared with itself."),
    ] = None,
    against: Annotated[list[str] | None, typer.Option(metavar="WHO", help=_HELP_AGAINST)] = None,
    steps: Annotated[int, typer.Option(help="rCM steps, 1 to 4.")] = 4,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels. [dim]\\[default: the model's][/] Small is quick.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="4n+1 frames. [dim]\\[default: the model's][/]")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, and of what else is made up.")] = 0,
    embeds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text embedding, .safetensors. [dim]\\[default: random][/]")
    ] = None,
    at_step: Annotated[int, typer.Option(help="The step whose blocks and ops are compared one by one.")] = 1,
    same_blocks: Annotated[
        bool,
        typer.Option(
            "--same-blocks", help="fp32 keeps the key blocks that the next runner keeps: no error by selection."
        ),
    ] = False,
    top_k: Annotated[
        str | None,
        typer.Option(metavar="SHARES", help="Sweep shares of kept key blocks, such as 0.05,0.1,0.15,0.2."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where report.html and the JSON files go.")] = Path("report"),
    as_json: JsonOption = False,
) -> None:
    """Show what quantization, sparsity, graphs, kernels and engines cost: per op, block and step; status 1 if too much.

    Without a GPU it compares what this machine can run and says what it left out. The JSON files in the output folder
    are Polygraphy's: polygraphy inspect data, polygraphy run --load-outputs.

    Examples:

      turbotrt compare --bundle engines/wan2.1-1.3b-480p-rtx5090 --checkpoint turbowan.pth --frames 5

      turbotrt compare --bundle engines/wan2.1-14b-720p-rtx5090 --checkpoint turbowan.pth --against fp32,plans

      turbotrt compare --bundle engines/wan2.1-1.3b-480p-rtx5090 --checkpoint turbowan.pth --top-k 0.05,0.1,0.15,0.2
    """
    from exporter.compare.spec import RUNNERS, CompareSpec, Runner

    named = [name.strip() for text in against or RUNNERS for name in text.split(",")]
    spec = CompareSpec(
        bundle=bundle,
        checkpoint=checkpoint,
        against=cast("tuple[Runner, ...]", tuple(named)),
        steps=steps,
        size=parse_size(size) if size else None,
        frames=frames,
        seed=seed,
        embeds=embeds,
        block_step=at_step - 1,
        same_blocks=same_blocks,
        sweep=tuple(parse_topk(text) for text in top_k.split(",")) if top_k else (),
        out=out,
    )
    from exporter.compare.run import REPORT, summary
    from exporter.compare.run import compare as run_comparison
    from exporter.compare.tables import show
    from exporter.polygraphy_files import recorded_lines

    found = run_comparison(spec, RichProgress())
    if as_json:
        typer.echo(summary(found).decode())
    else:
        show(console(), found)
        typer.echo(f"{out / REPORT}; the block with the worst result, on the bundle's GPU against these results:")
        typer.echo("\n".join(f"  {line}" for line in recorded_lines(bundle, out)))
    if not found.passed:
        raise typer.Exit(1)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "832x480". Raises UserError."""
    match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip())
    if match is None:
        raise UserError(f"--size {text!r} is not a size.", expected="WIDTHxHEIGHT, such as 832x480", got=text)
    return int(match[1]), int(match[2])
