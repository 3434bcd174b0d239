"""What the command line's modules share: how a command reports errors, common options, the console for tables."""

from __future__ import annotations

import errno
import re
import signal
import threading
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
_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
EPILOG = "All sizes are in GB = 10⁹ bytes. A mistake of the caller ends with one message and status 2."


@contextmanager
def _reported() -> Iterator[None]:
    """What ends a command decides its status: a user's error 2, an interruption 130.

    Libraries catch KeyboardInterrupt, torch.onnx among them, and fail in their own way: after Ctrl-C any error is it.
    """
    pressed = False

    def interrupt(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # signals may be handled there alone
    before = signal.signal(signal.SIGINT, interrupt) if main else None
    try:
        with _errors():
            yield
    except (Exception, KeyboardInterrupt) as error:
        if not pressed and not isinstance(error, KeyboardInterrupt):
            raise
        typer.echo("interrupted; nothing half-written was kept", err=True)
        raise typer.Exit(130) from error
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _errors() -> Iterator[None]:
    """The caller's mistakes, and a disk that takes no more, as one message."""
    try:
        yield
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename} cannot be written." if error.filename else "A file cannot be written."
        typer.echo(
            str(UserError(where, got=error.strerror, remedy="free some space or choose another folder")), err=True
        )
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXPORT_EXTRA:
            raise
        remedy = "pip install 'turbotrt[export]'"
        typer.echo(str(UserError(f"This command needs {error.name}, which is not installed.", remedy=remedy)), err=True)
        raise typer.Exit(2) from error


class Command(TyperCommand):
    """A command whose user errors are one message and status 2, and whose interruption is status 130."""

    def __init__(self, *args: Any, help: str | None = None, **kwargs: Any) -> None:
        # Typer breaks paragraphs behind the first one where the docstring's lines end: the terminal's width counts.
        super().__init__(*args, help=re.sub(r"(?<!\n)\n(?!\n)", " ", help) if help else help, **kwargs)

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
