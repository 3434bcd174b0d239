"""Whose the files in a bundle's folder are: an export replaces its own and keeps all others."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from exporter.bundle.polygraphy_files import README_NAME, SCRIPTS_NAME
from plugins.errors import UserError
from plugins.temporary import is_temporary, sweep
from runtime.bundle import LOCK_NAME, MANIFEST_NAME, Manifest, StageName
from runtime.media.text.embeds_cache import FOLDER

_STAGES = "|".join(get_args(StageName))
_MADE = re.compile(rf"({_STAGES}|one-file-\w+)\.(onnx|engine|log|jitcache)|\w+-[0-9a-f]{{12}}\.plan")
_GIVEN = re.compile(r"(weights(-\w+)?|text|vae|tiny)\.safetensors|tokenizer\.json")
_SINGLE = frozenset((MANIFEST_NAME, README_NAME, SCRIPTS_NAME))


def check_folder(folder: Path, previous: Manifest | None) -> None:
    """Raise UserError for a folder of somebody else's files, which only looks as if a bundle could go there.

    ``previous``: the manifest that was read there. Without one, all that an export writes must be what is there.
    """
    sweep(folder)
    foreign = [] if previous else sorted(name for name in _names(folder) if not _looks_ours(name))
    if foreign:
        raise UserError(
            f"{folder} holds files that are not a bundle's.",
            expected="a bundle, an empty folder or none",
            got=", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else ""),
            remedy="choose another --out, or move these files away",
        )


def keep_others(folder: Path, staging: Path, previous: Manifest | None) -> None:
    """Bring into ``staging`` what the old folder holds and no export made: weights that are not listed, notes, caches.

    Hard links, so that the old bundle stays whole until the new one takes its place.
    """
    for name in _names(folder):
        if not _is_made(name, previous) and not os.path.lexists(staging / name):
            carry(folder / name, staging / name)


def carry(source: Path, target: Path) -> None:
    """The same file, or folder of files, under another name: linked, and copied where links cannot be."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=lambda a, b: carry(Path(a), Path(b)))
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another's file, a file system without links, or too many of them
        shutil.copy2(source, target, follow_symlinks=False)


def _names(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir() if path.name != LOCK_NAME and not is_temporary(path.name))


def _looks_ours(name: str) -> bool:
    return name in _SINGLE or name == FOLDER or bool(_MADE.fullmatch(name) or _GIVEN.fullmatch(name))


def _is_made(name: str, previous: Manifest | None) -> bool:
    """Whether an export, or a run, made this file and the next one makes it anew or does without."""
    if previous is None:
        return name in _SINGLE or _MADE.fullmatch(name) is not None
    stems = {Path(file).stem for stage in previous.stages for file in (stage.onnx, stage.engine) if file}
    of_stages = {f"{stem}.{kind}" for stem in stems for kind in ("log", "jitcache")}
    return name == MANIFEST_NAME or name in previous.files or name in of_stages
