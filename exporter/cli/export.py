"""``turbotrt export``: the bundle of one model for one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exporter.bundle.polygraphy_files import closing_lines as polygraphy_lines
from exporter.cli.options import (
    CHECKPOINT_HELP,
    AttentionOption,
    ComponentsOption,
    GpuOption,
    LinearOption,
    LoraHighOption,
    LoraLowOption,
    LoraOption,
    LoraPartialOption,
    ModelOption,
    TextEncoderOption,
    TextLinearOption,
    TinyVaeOption,
    TokenizerOption,
    TopkOption,
    VaeOption,
)
from exporter.loras import LoraArguments
from exporter.progress import RichProgress
from exporter.spec import ExportSpec, export_spec
from exporter.terminal import say
from runtime.bundle import load_manifest
from runtime.checks import WEIGHT_OPTIONS, pack_command, rebuild_command


def export(
    model: ModelOption,
    gpu: GpuOption,
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="PATH|HF_ID|none",
            help=CHECKPOINT_HELP + " The words bring text encoder and VAE along. none: engines only, without weights.",
        ),
    ] = "none",
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The bundle is DIR/<model>-<gpu>/; an old one is replaced when all is done."),
    ] = Path("engines"),
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    linear: LinearOption = "int8",
    onnx_only: Annotated[
        bool,
        typer.Option("--onnx-only", help="ONNX graphs, plans and weights, no engines: for GPUs not built for here."),
    ] = False,
    one_file: Annotated[
        bool,
        typer.Option(
            "--one-file",
            help="Also one engine that holds all blocks and weights; takes 3.3 × the weights in RAM.",
        ),
    ] = False,
    embed_plugins: Annotated[
        bool,
        typer.Option(
            "--embed-plugins",
            help="Put the plugin library into the engines: any TensorRT program that allows host code loads them, "
            "with no file beside them.",
        ),
    ] = False,
    components: ComponentsOption = None,
    text_encoder: TextEncoderOption = None,
    tokenizer: TokenizerOption = None,
    vae: VaeOption = None,
    vae_decoder: Annotated[
        str,
        typer.Option(
            "--vae-decoder",
            metavar="full|tiny",
            help="tiny: TAEHV besides the VAE's own decoder, for generate's --vae-decoder tiny and --preview.",
        ),
    ] = "full",
    tiny_vae: TinyVaeOption = None,
    text_linear: TextLinearOption = "bf16",
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH[xFRAMES]",
            help="The largest video that the engines run. Larger engines take more memory at every size. "
            "[dim]\\[default: the model's][/]",
        ),
    ] = None,
    lora: LoraOption = None,
    lora_high: LoraHighOption = None,
    lora_low: LoraLowOption = None,
    lora_partial: LoraPartialOption = False,
) -> None:
    """Build the bundle of one [bold]model[/] for one [bold]GPU[/]: engines, ONNX, launch plans and packed weights.

    No GPU is needed for RTX parts. Stages whose inputs have not changed are skipped.

    Examples:

      turbotrt export --model wan2.1-14b-720p --gpu rtx5090

      turbotrt export --model wan-tiny --gpu rtx4090 --out build

      turbotrt export --model wan2.1-1.3b-480p --gpu rtx5090 --checkpoint official

      turbotrt export --model wan2.1-1.3b-480p --gpu rtx3090 --checkpoint ./turbowan.pth

      turbotrt export --model wan2.1-14b-720p --gpu rtx5090 --checkpoint ./turbowan.pth --lora ./style.safetensors:0.8

      turbotrt export --model wan2.2-i2v-a14b-720p --gpu h100 --onnx-only

      turbotrt export --model wan2.1-1.3b-480p --gpu rtx5090 --max-size 1280x720
    """
    spec = export_spec(
        model=model,
        gpu=gpu,
        attention=attention,
        topk=topk,
        linear=linear,
        checkpoint=checkpoint,
        out=out,
        onnx_only=onnx_only,
        one_file=one_file,
        embed_plugins=embed_plugins,
        components=components,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=vae,
        vae_decoder=vae_decoder,
        tiny_vae=tiny_vae,
        text_linear=text_linear,
        max_size=max_size,
        loras=LoraArguments.typed(lora, lora_high, lora_low, lora_partial),
    )
    from exporter.export import export_bundle

    folder = export_bundle(spec, RichProgress())
    say("\n".join(_closing_lines(spec, folder)))


def _closing_lines(spec: ExportSpec, folder: Path) -> list[str]:
    """What came out, and how to add weights where there are none."""
    from exporter.packing.dit import weight_paths

    what = "ONNX graphs and plans" if spec.onnx_only else "engines, ONNX graphs and plans"
    lines = polygraphy_lines(folder)
    weights = folder / "weights.safetensors"
    if spec.checkpoint is not None or all(path.is_file() for path in weight_paths(weights, spec.model).values()):
        return [*lines, *_media_lines(spec, folder), f"{folder}: {what}, weights."]
    manifest = load_manifest(folder)
    return [
        *lines,
        *_media_lines(spec, folder),
        f"{folder}: {what}. It has no weights yet; add them with one of",
        f"  {pack_command(folder, manifest)}",
        f"  {rebuild_command(manifest, folder, checkpoint=True)}",
    ]


def _media_lines(spec: ExportSpec, folder: Path) -> list[str]:
    """Which weights of text encoder and decoders are missing, and the options that add them."""
    parts = [
        part for part in WEIGHT_OPTIONS if part in spec.components and not (folder / f"{part}.safetensors").is_file()
    ]
    given = " ".join(f"{WEIGHT_OPTIONS[part]} PATH_OR_HF_ID" for part in parts)
    return [f"Prompts and videos need the weights that export's {given} adds."] if parts else []
