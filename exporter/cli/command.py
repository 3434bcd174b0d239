"""What the command line's modules share: how a command reports errors, common options, the console for tables."""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from exporter.terminal import say
from plugins.errors import Notice, UserError
from runtime.input_files import user_path
from runtime.system_errors import system_error

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
    """The caller's mistakes, and what the system refuses, as one message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Notice)
            shown = warnings.showwarning
            warnings.showwarning = lambda message, kind, *rest: (
                say(str(message), error=True) if issubclass(kind, Notice) else shown(message, kind, *rest)
            )
            yield
    except Exception as error:
        told = _message(error)
        if told is None:
            raise
        say(str(told), error=True)
        raise typer.Exit(2) from error


def _message(error: Exception) -> UserError | None:
    """The message for what ended a command; None where it is a mistake of ours."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXPORT_EXTRA:
        remedy = "pip install 'turbotrt[export]'"
        return UserError(f"This command needs {error.name}, which is not installed.", remedy=remedy)
    return system_error(error)


def typed(function: Callable[..., None]) -> Callable[..., None]:
    """The command with every path that was typed as the user means it."""

    @wraps(function)
    def command(*args: Any, **given: Any) -> None:
        paths = {name: user_path(value) for name, value in given.items() if isinstance(value, Path)}
        function(*args, **(given | paths))

    return command


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
