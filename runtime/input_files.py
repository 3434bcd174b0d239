"""Inputs are opened here alone: regular files, at once, and never more of them than their kind can need.

A pipe would wait for its writer, a device may never end, and what a file's size says may change while it is read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from plugins.errors import UserError
from runtime.byte_sizes import gigabytes
from runtime.system_errors import unreadable

_AT_LEAST = 1 << 16  # bytes that are tried whatever the size: Linux's own files say 0


def user_path(text: str | Path) -> Path:
    """The path that a user typed: ``~`` is the home, which the shell leaves alone in ``--out=~/x``. UserError."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{text} names no user's home here.",
            got=str(error),
            remedy="the whole path",
        ) from error


def open_input(path: Path, expected: str) -> int:
    """A descriptor for reading a regular file; ``expected`` is what it should be. Raises UserError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error, expected) from error
    except ValueError as error:  # a NUL in the name
        raise UserError(
            f"{str(path)!r} cannot be read.", expected=expected, got=str(error), remedy="give a regular file"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(
                f"{path} cannot be read.",
                expected=expected,
                got="a folder, a pipe or a device",
                remedy="give a regular file",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_input(path: Path, limit: int, expected: str) -> bytes:
    """All of a regular file of at most ``limit`` bytes. Raises UserError."""
    with os.fdopen(open_input(path, expected), "rb") as file:
        try:
            size = max(os.fstat(file.fileno()).st_size, _AT_LEAST)
            data = file.read(min(limit, size) + 1)
        except OSError as error:
            raise unreadable(path, error, expected) from error
    if len(data) > limit:
        raise UserError(
            f"{path} is too large.", expected=f"{expected}, of at most {gigabytes(limit)}", got="more than that"
        )
    return data
