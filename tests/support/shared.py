"""What a test session makes once, whichever of its processes asks first: bundles, plans, results of the interpreter."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shared:
    """A folder that all workers of a session have in common."""

    folder: Path

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of this name, which the first that asks fills while others wait; an error leaves none."""
        made, done = self.folder / name, self.folder / f"{name}.done"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                make(made)
                done.touch()
        return made
