"""A bundle is replaced whole or not at all: what is new is made beside it and takes its place by renames."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugins.errors import UserError


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A folder that takes the bundle's place when the block ends well, and vanishes when it does not.

    Exports into one --out take turns here. What a killed export left behind is put right by the next one.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be a folder for bundles.",
            expected="a folder, there or new",
            got=error.strerror,
            remedy="choose another --out",
        ) from error
    staging, retired, scratch = (_beside(folder, suffix) for suffix in ("partial", "previous", "scratch"))
    with _turn(folder):
        _restore(folder, staging, retired)
        shutil.rmtree(scratch, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            if folder.exists():
                folder.rename(retired)
            staging.rename(folder)
        finally:
            _restore(folder, staging, retired)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the bundle, on its file system, for files that will be moved into it; gone afterwards."""
    scratch = _beside(folder, "scratch")
    with _turn(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    lock = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _restore(folder: Path, staging: Path, retired: Path) -> None:
    """Bring back a bundle whose replacement never came, and remove what else an export left."""
    if retired.exists() and not folder.exists():
        retired.rename(folder)
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)
