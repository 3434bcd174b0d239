"""Where Triton keeps what it compiles: its own folder where that can be written, else a temporary one, with a line."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from plugins.errors import Notice
from plugins.temporary import scratch, temporary

_KEPT = ExitStack()  # to the end of the process


def writable_cache() -> None:
    """Give Triton a cache that can be written: homes of service accounts and containers often cannot."""
    import triton

    found = triton.knobs.cache.dir
    if (usable := _usable(found)) != found:
        triton.knobs.cache.dir = usable


@cache
def _usable(folder: str) -> str:
    try:
        if not Path(folder).is_absolute():
            raise FileNotFoundError(2, "there is no home")  # Triton would make a folder called ~ here
        Path(folder).mkdir(parents=True, exist_ok=True)
        with temporary(Path(folder)):
            return folder
    except OSError as error:
        instead = str(_KEPT.enter_context(scratch()))
        text = f"Triton cannot keep what it compiles in {folder} ({error.strerror}): a temporary folder is used."
        warnings.warn(Notice(f"{text} TRITON_CACHE_DIR names another."), stacklevel=2)
        return instead
