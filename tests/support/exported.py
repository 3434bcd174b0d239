"""The bundle that a session exports once: what the fixture ``exported`` gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exported:
    """A finished bundle, the checkpoint it was made from, and what the export said."""

    folder: Path
    checkpoint: Path
    titles: list[str]
    notes: list[str]
