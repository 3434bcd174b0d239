"""Our own code as one hash: what is kept of it is good for these sources alone."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[1]


@cache
def sources_hash() -> str:
    """Hash of all that shapes a graph or a plan."""
    digest = hashlib.sha256()
    for package in ("exporter", "runtime", "plugins"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
