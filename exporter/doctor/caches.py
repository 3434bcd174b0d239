"""The folders that keep what was downloaded or compiled: where they are, how full, and whether they can be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from plugins.temporary import temporary
from plugins.user_cache import VARIABLE, cache_folder


@dataclass(frozen=True)
class Cache:
    """``bytes``: what lies in it; ``free``: what its disk has left; ``problem``: why it cannot be written, or None.

    ``variable`` is the environment variable that names another place.
    """

    what: str
    variable: str
    folder: str
    bytes: int
    free: int
    problem: str | None


def caches() -> list[Cache]:
    """Those of the packages that are installed here."""
    return [_cache(*named) for named in _folders()]


def _folders() -> Iterator[tuple[str, str, Path]]:
    yield "verified files, plans, LoRAs (turbotrt)", VARIABLE, cache_folder()
    if find_spec("huggingface_hub"):
        from huggingface_hub import constants

        yield "downloaded weights (Hugging Face)", "HF_HUB_CACHE", Path(constants.HF_HUB_CACHE)
    if find_spec("triton"):
        home = os.environ.get("TRITON_HOME", os.path.expanduser("~"))
        yield (
            "compiled kernels (Triton)",
            "TRITON_CACHE_DIR",
            Path(os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")),
        )


def _cache(what: str, variable: str, folder: Path) -> Cache:
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    size = sum(_sizes(folder)) if folder.is_dir() else 0
    return Cache(what, variable, str(folder), size, shutil.disk_usage(above).free, _problem(above))


def _problem(folder: Path) -> str | None:
    try:
        with temporary(folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes of each file below; links are not followed, and what vanishes meanwhile is nothing."""
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:
                continue
            yield found.st_blocks * 512
