"""Temporary files and folders that say whose they are: what a killed process left behind is removed by the next one.

A name is ``.turbotrt-<host>-<process id>-<random>.partial``. While its process lives, it holds the file or folder
locked (flock); the lock ends with the process, however that ends, and what is not locked is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plugins.interrupts import Ending

_FILE_MODE = 0o644  # less the umask: what is exported is for anyone
_FOREIGN_AGE = 86_400  # seconds: another host's locks may not be seen here, so what it wrote of late stays
_NAME = re.compile(r"\.turbotrt-([\w.]+)-\d+-[0-9a-f]{12}\.partial")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of ours, on its way."""
    return _NAME.fullmatch(name) is not None


@contextmanager
def temporary(folder: Path, *, directory: bool = False) -> Iterator[Path]:
    """An empty file or folder with a short name, gone at the end of the block, unless it was moved away.

    What processes that are no more left in ``folder`` is removed first. Raises OSError where nothing can be made.
    """
    sweep(folder)
    made = _Temporary(folder, directory=directory)
    try:
        yield made.path
    finally:
        made.remove()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder where the system keeps temporary files. Raises OSError."""
    with temporary(Path(tempfile.gettempdir()), directory=True) as folder:
        yield folder


def sweep(folder: Path) -> None:
    """Remove what processes that are no more left in a folder; what cannot be removed stays."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if match := _NAME.fullmatch(name):
                _remove_abandoned(folder / name, ours=match[1] == _host())


class _Temporary:
    """A file or folder held by this process; removed with the last reference or at the process's end, if not before."""

    def __init__(self, folder: Path, *, directory: bool) -> None:
        self.path = folder / f".turbotrt-{_host()}-{os.getpid()}-{secrets.token_hex(6)}.partial"
        held: list[int] = []
        self.remove = Ending(self, _remove, self.path, held)
        while not held:
            held += _made(self.path, directory=directory)


def _made(path: Path, *, directory: bool) -> list[int]:
    """The locked descriptor of what was made; none where another process swept it away before the lock was on it."""
    if directory:
        path.mkdir()
    flags = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(path, flags | os.O_CLOEXEC, _FILE_MODE)
    with suppress(OSError):  # a file system without locks: then nobody can tell that this is abandoned either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return [descriptor]
    os.close(descriptor)
    return []


def _remove(path: Path, held: list[int]) -> None:
    _delete(path)
    while held:
        os.close(held.pop())


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(path: Path, *, ours: bool) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is at work
            if ours or time.time() - os.fstat(descriptor).st_mtime > _FOREIGN_AGE:
                _delete(path)
        finally:
            os.close(descriptor)


def _host() -> str:
    return re.sub(r"[^\w.]", "_", os.uname().nodename, flags=re.ASCII) or "unnamed"
