"""Files that appear whole or not at all, and are on the disk when they do.

What is new is written beside its place, under a name of its own, and takes the place by a rename. A process that is
killed leaves ``.turbotrt-<its id>-….partial`` and the old file.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from plugins.errors import UserError

_MODE = 0o644  # less the umask: what is exported is for anyone
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_NO_FOLDER_SYNC = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES))  # of some file systems


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` for others to write; in place of ``path`` when the block ends, gone if it raises.

    Raises OSError where there can be none.
    """
    temporary = _beside(path)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
        yield temporary
        put_in_place(temporary, path)
    except BaseException:
        with suppress(OSError):  # what went wrong before is the news
            temporary.unlink()
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """``atomic_path``, opened for writing without a buffer."""
    with atomic_path(path) as temporary, temporary.open("wb", buffering=0) as file:
        yield file


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """``atomic_path`` for a folder of files; ``path`` may be an empty folder before."""
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content. Raises OSError, and the file is as before."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def put_in_place(made: Path, path: Path) -> None:
    """Let what was made on the same file system take its place, and stay there. Raises OSError."""
    _sync(made)
    made.replace(path)
    _sync(path.parent)


class AtomicWriter(ABC):
    """A context that ends with ``path`` whole, or as it was. Its own OSErrors are told as UserErrors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._block: AbstractContextManager[None] = nullcontext()

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """The block in which the writer writes, around one of this module's."""

    def begin(self) -> None:
        """Enter the block; a subclass's ``__enter__`` calls it."""
        self._block = self.writing()
        with told(self.path):
            self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with told(self.path) if error is None else nullcontext():  # the caller's errors are not about this file
            self._block.__exit__(kind, error, trace)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """OSErrors of writing ``path`` as UserErrors."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written.",
            expected="a place that takes files",
            got=error.strerror or str(error),
            remedy="free some space" if error.errno in _FULL else "choose a folder that can be written",
        ) from error


def _beside(path: Path) -> Path:
    """A new name in the folder of ``path``: short, whatever the length of its own."""
    return path.parent / f".turbotrt-{os.getpid()}-{secrets.token_hex(6)}.partial"


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC or not path.is_dir():
            raise
