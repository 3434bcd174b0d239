"""A way to run bundles, as the registry knows it: what it checks, reads, opens and needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.backends.protocol import Activations, Runner
from runtime.bundle import Component, Manifest
from runtime.report import Report


@dataclass(frozen=True)
class BackendKind:
    """A way to run bundles.

    ``check`` says why it cannot run this one here, before files are hashed or loaded, or None; ``files`` are those it
    reads of a component besides weights; ``activations`` gives what stages need without loading anything, ``source``
    says where that comes from; ``overhead`` is the runner's ``overhead_bytes``, likewise. ``any_topk``: whether a run
    may choose the share of key blocks that sparse attention keeps, which engines hold.
    """

    name: str
    check: Callable[[Path, Manifest], str | None]
    files: Callable[[Manifest, Component], list[str]]
    open: Callable[[Path, Manifest, Report], Runner]
    activations: Callable[[Manifest], Activations]
    overhead: Callable[[Manifest], int]
    source: str
    any_topk: bool = False
