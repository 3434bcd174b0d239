"""Whoever changes a bundle has it alone, from reading its manifest to writing it: exports and packs take turns.

The lock is a file in the folder, locked (flock) by its process and gone with it; what is in the file says who that is.
An export replaces the folder itself, so it holds the new one's lock as well before that takes the place, and whoever
got a lock looks whether it still is the folder's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plugins.errors import UserError
from plugins.interrupts import Ending
from runtime.atomic import told
from runtime.bundle import LOCK_NAME


class Turn:
    """A bundle's real folder, this process's own until ``end``, the last reference, or the end of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[int] = []
        self._made: list[Path] = []
        self.end = Ending(self, _release, folder, self._held, self._made)

    def begin(self, note: Callable[[str], None]) -> None:
        """Make the folder and lock it; wait while another process has it, and say so. Raises OSError."""
        while not self._held:
            self._made += [each for each in (self.folder, *self.folder.parents) if not each.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the other one has ended and taken its empty folder away
                self._held += _locked(self.folder, note)

    def take(self, folder: Path) -> None:
        """Lock another folder too, one that nobody else knows: it will take the bundle's place. Raises OSError."""
        self._held += _locked(folder, lambda _: None)


@contextmanager
def bundle_turn(folder: Path, note: Callable[[str], None]) -> Iterator[Turn]:
    """The bundle in ``folder`` for this process alone; ``note`` hears for whom it waits. A link is followed.

    Raises UserError where no folder can be there.
    """
    turn = Turn(Path(os.path.realpath(folder)))
    try:
        with told(folder):
            _check_link(folder, turn.folder)
            turn.begin(note)
        yield turn
    finally:
        turn.end()


def _check_link(folder: Path, real: Path) -> None:
    """Raise UserError for a link whose disk is not there: what is written must not go to another one."""
    if folder.is_symlink() and not real.parent.is_dir():
        raise UserError(
            f"{folder} is a link to nowhere.",
            expected="a folder, or a link to one",
            got=f"a link to {real}",
            remedy="mount what it points to, or remove the link",
        )


def _locked(folder: Path, note: Callable[[str], None]) -> list[int]:
    """The descriptor of the folder's lock, held; none where the folder was replaced while this waited."""
    path = folder / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 256, 0).decode("utf-8", "replace").strip() or "another process"
            note(f"{folder}: {holder} is changing this bundle; waiting for its end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
            return [descriptor]
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return []


def _release(folder: Path, held: list[int], made: list[Path]) -> None:
    with suppress(OSError):
        present = (folder / LOCK_NAME).stat()
        if any(os.path.samestat(os.fstat(descriptor), present) for descriptor in held):
            (folder / LOCK_NAME).unlink()
    for empty in made:
        with suppress(OSError):  # a bundle by now, or another one's
            empty.rmdir()
    while held:
        os.close(held.pop())
