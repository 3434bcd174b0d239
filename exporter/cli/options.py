"""Options that several commands share, and the words that explain them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.networks.dit.options import ATTENTIONS
from exporter.spec import DEFAULT_TOPK
from exporter.terminal import say
from plugins.errors import UserError

if TYPE_CHECKING:
    from runtime.file_checks import Verify

ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Model, as [bold]turbotrt list[/] names it.")
]
GpuOption = Annotated[str, typer.Option("--gpu", metavar="GPU", help="Target GPU, as [bold]turbotrt list[/] names it.")]
LinearOption = Annotated[
    str, typer.Option("--linear", metavar="int8|bf16", help="int8: W8A8 in blocks of 128, half the size of bf16.")
]
AttentionOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(ATTENTIONS),
        help="Self-attention. sagesla: sparse-linear, INT8 scores; sla: the same, exact; sage: dense INT8; original: "
        "dense, exact in bf16.",
    ),
]
TopkOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help=f"Share of key blocks that sparse attention keeps, 0.001 to 1; 0.1 to 0.15 is usual. "
        f"[dim]\\[default: {DEFAULT_TOPK}][/]",
    ),
]
ComponentsOption = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Of dit, text and vae, the parts to build. [dim]\\[default: dit,text,vae][/]"),
]
TextEncoderOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|HF_ID",
        help="umT5's weights: Wan's models_t5_*.pth, transformers' or ComfyUI's safetensors, a folder of one, or "
        "official.",
    ),
]
TextLinearOption = Annotated[
    str,
    typer.Option(
        "--text-linear", metavar="bf16|int8", help="The text encoder's Linears. int8: W8A8, half the weights of bf16."
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|HF_ID",
        help="tokenizer.json. [dim]\\[default: the one beside the text encoder, else google/umt5-xxl's][/]",
    ),
]
VaeOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|HF_ID",
        help="The VAE's weights: Wan2.1_VAE.pth, diffusers' safetensors, a folder of either, or official.",
    ),
]
TinyVaeOption = Annotated[
    str | None,
    typer.Option(
        "--tiny-vae",
        metavar="PATH|HF_ID",
        help="The tiny decoder's weights: TAEHV's taew2_1.pth or .safetensors.",
    ),
]
VaeDecoderOption = Annotated[
    str,
    typer.Option(
        "--vae-decoder",
        metavar="full|tiny",
        help="What makes frames of latents. full: the VAE's own; tiny: TAEHV, several times faster, with less detail.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
CHECKPOINT_HELP = (
    "Weights of a whole model: a file or folder (.safetensors, shards, .pth), a Hugging Face id (org/repo or "
    "org/repo:file), HIGH,LOW for a model of two experts; official or official-quant: what the authors publish."
)

LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE|HF_ID[:STRENGTH]",
        help="A LoRA to merge before packing, with a strength (1 if none is said); several may be given. In peft's, "
        "diffusers', kohya's, musubi's, ComfyUI's, Wan's or LightX2V's names.",
    ),
]
LoraHighOption = Annotated[
    list[str] | None,
    typer.Option("--lora-high", metavar="FILE|HF_ID[:STRENGTH]", help="The same for the high-noise expert alone."),
]
LoraLowOption = Annotated[
    list[str] | None,
    typer.Option("--lora-low", metavar="FILE|HF_ID[:STRENGTH]", help="The same for the low-noise expert alone."),
]
LoraPartialOption = Annotated[
    bool, typer.Option("--lora-partial", help="Pass over what a LoRA changes and the model does not have.")
]

BundleOption = Annotated[Path, typer.Option("--bundle", metavar="DIR", help="A folder that turbotrt export wrote.")]
VramOption = Annotated[
    str | None,
    typer.Option(
        "--vram",
        metavar="SIZE",
        help="The most device memory to use, such as 12GB or 11.5GiB; weights that do not fit stream. "
        "[dim]\\[default: what is free][/]",
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="auto is tensorrt, the bundle's engines; torch needs the export "
        "extra: compiled plans on CUDA, references on the CPU.",
    ),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Pixels. [dim]\\[default: the model's][/]")
]
FramesOption = Annotated[int | None, typer.Option("--frames", help="Rounded to 4n+1. [dim]\\[default: the model's][/]")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="1 to 4. [dim]\\[default: the model's][/]")]
OdeOption = Annotated[bool, typer.Option("--ode", help="Deterministic updates: no fresh noise at each step.")]
VerifyOption = Annotated[
    str,
    typer.Option(
        "--verify",
        metavar="auto|always|never",
        help="Compare the files with their hashes: auto hashes those that are new or were changed or touched since "
        "they were found right.",
    ),
]
NoVerifyOption = Annotated[bool, typer.Option("--no-verify", help="--verify never.")]


def parse_verify(verify: str, *, no_verify: bool) -> Verify:
    """The way to verify that --verify and --no-verify name. Raises UserError."""
    from runtime.file_checks import parse_verify as parse

    found = parse(verify)
    if no_verify and verify == "always":
        raise UserError("--verify always and --no-verify say the opposite.", remedy="give one of them")
    return "never" if no_verify else found


def parse_frames(frames: int | None) -> int | None:
    """The nearest number of frames that can be made, 4n+1, with a line where it is another; None stays None."""
    if frames is None or frames < 1 or frames % 4 == 1:
        return frames
    nearest = (frames + 1) // 4 * 4 + 1
    say(f"--frames {frames} becomes {nearest}: a video has 4n+1 frames.", error=True)
    return nearest


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) of "832x480"; None stays None. Raises UserError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})\s*[x×*]\s*([0-9]{1,6})", text.strip().lower())
    if match is None:
        raise UserError("--size cannot be read.", expected="WIDTHxHEIGHT in pixels, such as 832x480", got=text)
    return int(match[1]), int(match[2])
