"""An output folder that is one process's own from before its work until its frames are there."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from plugins.errors import UserError
from plugins.interrupts import Ending, uninterrupted
from plugins.temporary import sweep
from runtime.atomic import told


class FolderClaim:
    """A new or empty folder, locked (flock); given up by ``release``, by the last reference, or with the process.

    Raises UserError where the folder holds anything, or another has it.
    """

    def __init__(self, path: Path) -> None:
        held: list[int] = []
        made: list[Path] = []
        self.release = Ending(self, _release, held, made)
        with told(path):
            if not path.exists():
                with uninterrupted():
                    path.mkdir()
                    made.append(path)
            held.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            _lock(path, held[0])
            sweep(path)
            replaced = not os.path.samestat(os.fstat(held[0]), path.stat())
            if replaced or any(path.iterdir()):
                raise UserError(f"{path} exists already.", expected="a new or empty folder for the frames")


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{path} is taken.",
            expected="a folder for one video's frames",
            got="another generation, which writes its frames into it",
            remedy="another name",
        ) from error
    except OSError:  # a file system without locks of folders: the last rename decides
        pass


def _release(held: list[int], made: list[Path]) -> None:
    for folder in made:
        with suppress(OSError):  # it holds the frames by now
            folder.rmdir()
    while held:
        os.close(held.pop())
