"""The user's own cache folder: what can be made again, and saves time when it is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from plugins.errors import UserError
from runtime.atomic import write_atomic
from runtime.input_files import read_input

VARIABLE = "TURBOTRT_CACHE_DIR"


def cache_folder() -> Path:
    """``$TURBOTRT_CACHE_DIR``, else turbotrt in ``$XDG_CACHE_HOME`` or ~/.cache; it need not be there."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "turbotrt"


def cached(kind: str, key: str, limit: int) -> bytes | None:
    """What was kept under a key, of at most ``limit`` bytes; None where nothing is, or somebody else may have put it.

    A folder that others own or may write is as good as none: what lies there decides what is run unverified.
    """
    try:
        folder = cache_folder() / kind
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        return read_input(folder / key, limit, "a file of the cache")
    except (OSError, RuntimeError, UserError):
        return None


def keep(kind: str, key: str, data: bytes) -> str | None:
    """Keep something under a key; what went wrong, or None: a home need not be writable."""
    try:
        folder = cache_folder() / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(folder / key, data)
    except (OSError, RuntimeError) as error:
        return f"Nothing is kept for the next start ({error}): {VARIABLE} names another folder."
    return None
