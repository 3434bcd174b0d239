"""A bundle is replaced whole or not at all: what is new is made beside it, and the two change places at once."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.bundle_lock import Turn
from runtime.atomic import sync
from runtime.bundle import LOCK_NAME

_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux's renameat2(2)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # of old kernels and of network file systems


@contextmanager
def staging_folder(turn: Turn) -> Iterator[Path]:
    """A folder that takes the bundle's place when the block ends well, and vanishes when it does not.

    What a killed export left behind is put right first.
    """
    staging, retired = (beside(turn.folder, suffix) for suffix in ("partial", "previous"))
    _restore(turn, staging, retired)
    staging.mkdir()
    try:
        yield staging
        for file in staging.iterdir():
            sync(file)
        _take_place(turn, staging, retired)
    finally:
        _restore(turn, staging, retired)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the bundle, on its file system, for files that will be moved into it; gone afterwards."""
    scratch = beside(Path(os.path.realpath(folder)), "scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def beside(folder: Path, suffix: str) -> Path:
    """A hidden name beside a bundle's folder, of that bundle alone."""
    return folder.with_name(f".{folder.name}.{suffix}")


def _take_place(turn: Turn, new: Path, retired: Path) -> None:
    """Let a folder take the bundle's place, which is never empty meanwhile; the old one goes to the new one's name."""
    turn.take(new)
    try:
        _exchange(new, turn.folder)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        turn.folder.rename(retired)
        new.rename(turn.folder)
    sync(turn.folder.parent)


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change names at once. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(first), None, os.fspath(second))


def _restore(turn: Turn, staging: Path, retired: Path) -> None:
    """Bring back a bundle whose replacement never came, and remove what else an export left."""
    shutil.rmtree(staging, ignore_errors=True)
    if retired.exists() and {path.name for path in turn.folder.iterdir()} <= {LOCK_NAME}:
        _take_place(turn, retired, staging)
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)
