"""What has to come from Hugging Face before work can begin: how much, under which licence, and whether it has room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError
from runtime.byte_sizes import gigabytes

_SPARE = 1 << 30  # bytes that a disk keeps free beside a download


@dataclass(frozen=True)
class Download:
    """The files of one id that are not in the cache yet. ``licence`` and ``revision`` are as the Hub states them."""

    hub_id: str
    files: tuple[str, ...]
    bytes: int
    cache: Path
    licence: str | None
    revision: str | None

    def __str__(self) -> str:
        at = f" at {self.revision[:12]}" if self.revision else ""
        return f"{self.hub_id}{at}: {gigabytes(self.bytes)} to download, licence {self.licence or 'not stated'}"


def tell_downloads(downloads: Iterable[Download], note: Callable[[str], None]) -> None:
    """Say what will be fetched, of what size and under which licence. Raises UserError where the disk has no room."""
    missing = [download for download in dict.fromkeys(downloads) if download.files]
    for download in missing:
        note(str(download))
    for cache in dict.fromkeys(download.cache for download in missing):
        needed = sum(download.bytes for download in missing if download.cache == cache)
        free = shutil.disk_usage(_existing(cache)).free
        if needed + _SPARE > free:
            raise UserError(
                f"There is no room for the download in {cache}.",
                expected=f"{gigabytes(needed + _SPARE)} free",
                got=f"{gigabytes(free)} free",
                remedy="free some space, or set HF_HUB_CACHE to a folder on another disk",
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))
