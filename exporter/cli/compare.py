"""``turbotrt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli.options import (
    CHECKPOINT_HELP,
    BundleOption,
    FramesOption,
    JsonOption,
    LoraHighOption,
    LoraLowOption,
    LoraOption,
    LoraPartialOption,
    OdeOption,
    SizeOption,
    StepsOption,
    VaeDecoderOption,
    parse_frames,
    parse_size,
)
from exporter.loras import LoraArguments
from exporter.progress import RichProgress
from exporter.spec import parse_topk
from exporter.terminal import console, say
from runtime.media.decoders import decoder_named

if TYPE_CHECKING:
    from exporter.compare.spec import Runner

CheckpointOption = Annotated[
    str | None,
    typer.Option(metavar="PATH|HF_ID", help=CHECKPOINT_HELP + " Without it the bundle is compared with itself."),
]
AgainstOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHO",
        help="Who takes part, comma-separated or repeated: fp32 (the checkpoint in plain PyTorch), quantized (the "
        "bundle's weights, reference ops), onnx, plans (compiled kernels, needs a GPU), tensorrt (engines, needs their "
        "GPU). [dim]\\[default: all that this machine can run][/]",
    ),
]
EmbedsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A safetensors file whose text_embeds is umT5's output. [dim]\\[default: random][/]"
    ),
]
ConditionOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Image-to-video: a safetensors file whose condition is the VAE's latents of \\[image, zeros…]. "
        "[dim]\\[default: random][/]",
    ),
]
SameBlocksOption = Annotated[
    bool,
    typer.Option("--same-blocks", help="fp32 keeps the key blocks that the next runner keeps: no error by selection."),
]
VideoOption = Annotated[
    bool | None,
    typer.Option(
        "--video/--no-video",
        help="Decode the final latents by the bundle's decoder and compare frames. [dim]\\[default: on a GPU, and for "
        "videos small enough for the CPU][/]",
    ),
]
SweepOption = Annotated[
    str | None,
    typer.Option(
        "--top-k",
        metavar="SHARES",
        help="Sweep shares of kept key blocks, such as 0.05,0.1,0.15,0.2: quality against "
        "time, measured on a GPU, else estimated for the bundle's.",
    ),
]
OutOption = Annotated[Path, typer.Option(metavar="DIR", help="Where report.html and the JSON files go.")]


def compare(
    bundle: BundleOption,
    checkpoint: CheckpointOption = None,
    against: AgainstOption = None,
    steps: StepsOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    ode: OdeOption = False,
    seed: Annotated[int, typer.Option(help="Of the noise, and of what else is made up.")] = 0,
    embeds: EmbedsOption = None,
    condition: ConditionOption = None,
    at_step: Annotated[int, typer.Option(help="The step whose blocks and ops are compared one by one.")] = 1,
    same_blocks: SameBlocksOption = False,
    video: VideoOption = None,
    vae_decoder: VaeDecoderOption = "full",
    top_k: SweepOption = None,
    lora: LoraOption = None,
    lora_high: LoraHighOption = None,
    lora_low: LoraLowOption = None,
    lora_partial: LoraPartialOption = False,
    out: OutOption = Path("report"),
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
    from exporter.bundle.polygraphy_files import recorded_lines
    from exporter.compare.report.tables import show
    from exporter.compare.run import REPORT, summary
    from exporter.compare.run import compare as run_comparison
    from exporter.compare.spec import CompareSpec

    shares = tuple(parse_topk(text, "--top-k") for text in top_k.split(",")) if top_k else ()
    spec = CompareSpec(
        bundle,
        checkpoint,
        _runners(against),
        steps=steps,
        size=parse_size(size),
        frames=parse_frames(frames),
        seed=seed,
        ode=ode,
        embeds=embeds,
        condition=condition,
        block_step=at_step - 1,
        same_blocks=same_blocks,
        video=video,
        vae_decoder=decoder_named(vae_decoder),
        sweep=shares,
        loras=LoraArguments.typed(lora, lora_high, lora_low, lora_partial),
        out=out,
    )
    found = run_comparison(spec, RichProgress())
    if as_json:
        say(summary(found).decode())
    else:
        show(console(), found)
        say(f"{out / REPORT}; the block with the worst result, on the bundle's GPU against these results:")
        say("\n".join(f"  {line}" for line in recorded_lines(bundle, out)))
    if not found.passed:
        raise typer.Exit(1)


def _runners(against: list[str] | None) -> tuple[Runner, ...]:
    """The names given, comma-separated or repeated; all where none is. Raises UserError."""
    from exporter.compare.spec import RUNNERS, runner_named

    return tuple(runner_named(name.strip()) for text in against or RUNNERS for name in text.split(","))
