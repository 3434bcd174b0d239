"""What the command line's modules share: how a command reports errors, common options, the console for tables."""

from __future__ import annotations

import errno
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from exporter.terminal import say
from plugins.errors import UserError

EXPORT_EXTRA = frozenset(
    (
        "torch",
        "triton",
        "sageattention",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "onnx_graphsurgeon",
        "polygraphy",
        "matplotlib",
        "huggingface_hub",
        "ml_dtypes",
    )
)
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
        say("interrupted; nothing half-written was kept", error=True)
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
        say(str(error), error=True)
        raise typer.Exit(2) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename} cannot be written." if error.filename else "A file cannot be written."
        say(str(UserError(where, got=error.strerror, remedy="free some space or choose another folder")), error=True)
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXPORT_EXTRA:
            raise
        remedy = "pip install 'turbotrt[export]'"
        say(str(UserError(f"This command needs {error.name}, which is not installed.", remedy=remedy)), error=True)
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
