"""Bundles that a session exports once, and what their exports said."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.support.progress import SilentProgress


@dataclass(frozen=True)
class Exported:
    """A finished bundle, the checkpoint it was made from, and what the export said."""

    folder: Path
    checkpoint: Path
    titles: list[str]
    notes: list[str]


def keep(shared: Path, bundle: Path, report: SilentProgress) -> None:
    """Note in the shared folder what an export made there and said."""
    said = {"bundle": bundle.relative_to(shared).as_posix(), "titles": report.titles, "notes": report.notes}
    (shared / "said.json").write_text(json.dumps(said))


def kept(shared: Path) -> Exported:
    """What ``keep`` noted; the checkpoint lies in the shared folder under the name checkpoint.safetensors."""
    said = json.loads((shared / "said.json").read_text())
    return Exported(shared / said["bundle"], shared / "checkpoint.safetensors", said["titles"], said["notes"])
