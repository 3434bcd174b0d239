"""Backends by name: tensorrt is the runtime's own, others are found by entry point."""

from __future__ import annotations

from importlib.metadata import entry_points

from plugins.errors import UserError
from runtime.backends.kind import BackendKind

GROUP = "turbotrt.backends"


def backend_kind(choice: str | BackendKind) -> BackendKind:
    """The backend of that name; "auto" is tensorrt, and never anything else. Raises UserError listing those here."""
    if isinstance(choice, BackendKind):
        return choice
    if choice in ("auto", "tensorrt"):
        from runtime.backends.tensorrt import TENSORRT

        return TENSORRT
    found = {point.name: point for point in entry_points(group=GROUP)}
    if choice not in found:
        raise UserError(
            f"There is no backend named {choice!r} here.",
            expected=", ".join(["auto", "tensorrt", *sorted(found)]),
            got=choice,
            remedy="pip install 'turbotrt[export]' brings torch",
        )
    try:
        kind = found[choice].load()
    except ModuleNotFoundError as error:
        raise UserError(
            f"Backend {choice!r} needs {error.name}, which is not installed.", remedy="pip install 'turbotrt[export]'"
        ) from error
    if not isinstance(kind, BackendKind):
        raise UserError(
            f"The entry point of backend {choice!r} is not a backend.",
            expected="a BackendKind",
            got=type(kind).__name__,
        )
    return kind
