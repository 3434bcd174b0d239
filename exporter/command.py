"""What the command line's modules share: how a command reports errors, common options, the console for tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from exporter.spec import DEFAULT_TOPK
from plugins.errors import UserError

# fmt: off
EXPORT_EXTRA = frozenset((
    "torch", "triton", "sageattention", "onnx", "onnx_ir", "onnxscript", "onnx_graphsurgeon", "polygraphy",
    "matplotlib", "huggingface_hub", "ml_dtypes",
))
# fmt: on
EPILOG = "All sizes are in GB = 10⁹ bytes. A mistake of the caller ends with one message and status 2."


@contextmanager
def _reported() -> Iterator[None]:
    """What ends a command decides its status: a user's error 2, an interruption 130."""
    try:
        yield
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXPORT_EXTRA:
            raise
        remedy = "pip install 'turbotrt[export]'"
        typer.echo(str(UserError(f"This command needs {error.name}, which is not installed.", remedy=remedy)), err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; nothing half-written was kept", err=True)
        raise typer.Exit(130) from error


class Command(TyperCommand):
    """A command whose user errors are one message and status 2, and whose interruption is status 130."""

    def invoke(self, ctx: Any) -> Any:
        with _reported():
            return super().invoke(ctx)


class Group(TyperGroup):
    """A group that works by itself too, with errors reported as a Command's."""

    def invoke(self, ctx: Any) -> Any:
        with _reported():
            return super().invoke(ctx)


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
        metavar="sagesla|sla|sage",
        help="Self-attention. sagesla: sparse-linear, INT8 scores; sla: the same, exact; sage: dense INT8.",
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
        help="umT5's weights: Wan's models_t5_*.pth, transformers' safetensors, or a folder of either.",
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
        metavar="PATH|HF_ID", help="The VAE's weights: Wan2.1_VAE.pth, diffusers' safetensors, or a folder of either."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
CHECKPOINT_HELP = (
    "Weights: a file or folder (.safetensors, shards with an index, .pth), a Hugging Face id (org/repo or "
    "org/repo:file), or HIGH,LOW for a model of two experts."
)


def console() -> Console:
    """For tables on standard output: names come from files, so no markup; wide enough where there is no terminal."""
    made = Console(markup=False, emoji=False, highlight=False)
    return made if made.is_terminal else Console(markup=False, emoji=False, highlight=False, width=160)
