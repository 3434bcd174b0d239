"""Backends by name: tensorrt is the runtime's own, others are found by entry point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from plugins.errors import UserError
from runtime.backend import Backend, Report
from runtime.bundle import Manifest
from runtime.checks import Verdict
from runtime.media.runner import Activations, Runner

GROUP = "turbotrt.backends"


@dataclass(frozen=True)
class BackendKind:
    """A way to run bundles.

    ``check`` says whether it can run this one here, before files are hashed or loaded; ``files`` are those it reads
    besides weights; ``activation_bytes`` (manifest, stage, L) needs no GPU, and ``source`` says where it comes from.
    ``open_media`` opens what runs the text encoder and the VAE, and ``media_bytes`` gives their stages' activations
    without a GPU; None where the backend runs the DiT alone.
    """

    name: str
    check: Callable[[Path, Manifest], Verdict]
    files: Callable[[Manifest], list[str]]
    open: Callable[[Path, Manifest, Report], Backend]
    activation_bytes: Callable[[Manifest, str, int], int]
    overhead: Callable[[Manifest], int]
    source: str
    open_media: Callable[[Path, Manifest, Report], Runner] | None = None
    media_bytes: Callable[[Manifest], Activations] | None = None


def backend_kind(choice: str | BackendKind) -> BackendKind:
    """The backend of that name; "auto" is tensorrt, and never anything else. Raises UserError listing those here."""
    if isinstance(choice, BackendKind):
        return choice
    if choice in ("auto", "tensorrt"):
        from runtime.tensorrt_backend import TENSORRT

        return TENSORRT
    found = {point.name: point for point in entry_points(group=GROUP)}
    if choice not in found:
        raise UserError(f"There is no backend named {choice!r} here.",
                        expected=", ".join(["auto", "tensorrt", *sorted(found)]), got=choice,
                        remedy="pip install 'turbotrt[export]' brings torch")  # fmt: skip
    try:
        kind = found[choice].load()
    except ModuleNotFoundError as error:
        raise UserError(f"Backend {choice!r} needs {error.name}, which is not installed.",
                        remedy="pip install 'turbotrt[export]'") from error  # fmt: skip
    if not isinstance(kind, BackendKind):
        raise UserError(f"The entry point of backend {choice!r} is not a backend.", expected="a BackendKind",
                        got=type(kind).__name__)  # fmt: skip
    return kind
