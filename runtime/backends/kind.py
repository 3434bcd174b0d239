"""A way to run bundles, as the registry knows it: what it checks, reads, opens and needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.backends.protocol import Backend
from runtime.backends.runner import Activations, Runner
from runtime.bundle import Manifest
from runtime.checks import Verdict
from runtime.report import Report


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
