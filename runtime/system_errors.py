"""What the system refuses, as a message: the one place where its errors and want of memory become UserErrors."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

from plugins.errors import UserError

_SPACE = "free some space, or choose another folder"
_REMEDIES = {
    errno.EACCES: "its permissions, or another path",
    errno.EPERM: "its permissions, or another path",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another file system",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EEXIST: "another name, or remove what is there",
    errno.ENOTEMPTY: "another name, or remove what is there",
    errno.EISDIR: "the name of a file",
    errno.ENOTDIR: "a path whose folders are folders",
    errno.ELOOP: "a path without a circle of links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close what else has files open",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
}
_OF_WRITING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG))
_NO_ROOM = ("can't allocate memory", "not enough memory", "out of memory")  # torch's allocators, in a RuntimeError


def unwritable(path: Path, error: OSError) -> UserError:
    """Why a file or folder cannot be written."""
    missing = error.errno == errno.ENOENT and not path.parent.exists()
    return UserError(
        f"{path} cannot be written.",
        expected="a place that takes files",
        got=f"no folder {path.parent}" if missing else _words(error),
        remedy=f"mkdir -p {shlex.quote(str(path.parent))}" if missing else _remedy(error, "choose another folder"),
    )


def unreadable(path: Path, error: OSError, expected: str | None = None) -> UserError:
    """Why a file cannot be read."""
    return UserError(
        f"{path} cannot be read.", expected=expected, got=_words(error), remedy=_remedy(error, "check the path")
    )


def system_error(error: BaseException) -> UserError | None:
    """The message of an error that nothing nearer to its cause has told; None where it is a mistake of ours."""
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in text for word in _NO_ROOM)):
        return UserError(
            "The GPU or the host has not that much memory free.",
            got=_first_line(text) or type(error).__name__,
            remedy="end what else uses memory, or ask for less: a smaller --vram, fewer pixels or frames",
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return UserError("The system allows no further thread.", got=_first_line(text), remedy=_REMEDIES[errno.EAGAIN])
    if not isinstance(error, OSError) or error.errno == errno.EPIPE:  # the reader of our output went away
        return None
    if error.errno == errno.ENOMEM:
        return system_error(MemoryError(text))
    path = _path_of(error)
    if error.errno in _OF_WRITING:
        return (
            unwritable(path, error)
            if path
            else UserError("A file cannot be written.", got=_words(error), remedy=_remedy(error, _SPACE))
        )
    return UserError(
        f"{path or 'Something'} cannot be used.", got=_words(error), remedy=_remedy(error, "check what is there")
    )


def _path_of(error: OSError) -> Path | None:
    name = error.filename2 or error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None


def _words(error: OSError) -> str:
    return error.strerror or _first_line(str(error)) or type(error).__name__


def _remedy(error: OSError, otherwise: str) -> str:
    return otherwise if error.errno is None else _REMEDIES.get(error.errno, otherwise)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
