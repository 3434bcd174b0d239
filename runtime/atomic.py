"""Files that appear whole or not at all, and are on the disk when they do.

What is new is written beside its place, under a name of its own (plugins.temporary), and takes the place by a rename.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from plugins.temporary import temporary
from runtime.system_errors import unwritable

_NO_FOLDER_SYNC = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES))  # of some file systems


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` for others to write; in place of ``path`` when the block ends, gone if it raises.

    Raises OSError where there can be none, before anything is written.
    """
    _check_name(path, directory=False)
    with temporary(path.parent) as made:
        yield made
        put_in_place(made, path)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """``atomic_path``, opened for writing without a buffer."""
    with atomic_path(path) as made, made.open("wb", buffering=0) as file:
        yield file


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """``atomic_path`` for a folder of files; ``path`` may be an empty folder before."""
    _check_name(path, directory=True)
    with temporary(path.parent, directory=True) as made:
        yield made
        for file in made.iterdir():
            sync(file)
        put_in_place(made, path)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content. Raises OSError, and the file is as before."""
    with atomic_path(path) as made:
        made.write_bytes(data)


def check_place(path: Path, *, directory: bool = False) -> None:
    """Raise UserError where a file or folder could not be written, long before there is anything to write.

    It is begun as it will be: permissions alone do not tell (root, read-only and special file systems).
    """
    with told(path), temporary(path.parent, directory=directory):
        _check_name(path, directory=directory)


def put_in_place(made: Path, path: Path) -> None:
    """Let what was made on the same file system take its place, and stay there. Raises OSError."""
    sync(made)
    made.replace(path)
    sync(path.parent)


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
        raise unwritable(path, error) from error


def _check_name(path: Path, *, directory: bool) -> None:
    """Raise OSError where the last rename would fail, or take the place of a pipe or a device."""
    try:
        mode = (path.lstat() if directory else path.stat()).st_mode
    except FileNotFoundError:  # a link to nothing is replaced, as one to a file is
        return
    if directory and (not stat.S_ISDIR(mode) or any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "it exists, and is no empty folder", str(path))
    if not directory and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not directory and not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "it is a pipe or a device", str(path))


def sync(path: Path) -> None:
    """Bring what was written to the disk; of a folder its names. Raises OSError, but where folders cannot be synced."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC or not path.is_dir():
            raise
