"""The user's own cache folder: what can be made again, and saves time when it is there."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from plugins.temporary import temporary

VARIABLE = "TURBOTRT_CACHE_DIR"
_HASH = hashlib.sha256().digest_size  # bytes in front of each file's own: one that is not whole is not there


def cache_folder() -> Path:
    """``$TURBOTRT_CACHE_DIR``, else turbotrt in ``$XDG_CACHE_HOME`` or ~/.cache; it need not be there."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "turbotrt"


def cached(kind: str, key: str, limit: int) -> bytes | None:
    """What was kept under a key, of at most ``limit`` bytes; None where nothing is, or somebody else may have put it.

    A folder that others own or may write is as good as none: what lies there decides what runs, and what is verified.
    """
    try:
        folder = cache_folder() / kind
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        data = _read(folder / key, limit + _HASH)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return data[_HASH:] if data[:_HASH] == hashlib.sha256(data[_HASH:]).digest() else None


def keep(kind: str, key: str, data: bytes) -> str | None:
    """Keep something under a key; what went wrong, or None: a home need not be writable."""
    try:
        folder = cache_folder() / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with temporary(folder) as made:
            made.write_bytes(hashlib.sha256(data).digest() + data)
            made.replace(folder / key)
    except (OSError, RuntimeError) as error:
        return f"Nothing is kept for the next start ({error}): {VARIABLE} names another folder."
    return None


def _read(path: Path, limit: int) -> bytes:
    """All of a regular file, and no more than that. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(path)
        return file.read(limit + 1)[:limit]
