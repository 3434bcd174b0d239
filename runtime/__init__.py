"""turbotrt's runtime: loads a bundle and drives the rCM loop on its engines. No torch, no Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline as Pipeline


def __getattr__(name: str) -> Any:
    """``Pipeline``, imported when it is first asked for: the exporter needs the manifest alone."""
    if name == "Pipeline":
        from runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
