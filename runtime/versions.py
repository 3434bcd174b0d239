"""Which packages are here, and in which version; ours is known without being installed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from plugins.errors import UserError

OURS = "turbotrt"
_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def own_version() -> str:
    """The version of this code: its source tree's, else the installed package's. Raises UserError.

    The tree comes first: it may be imported by PYTHONPATH where none is installed, or another.
    """
    text = _PROJECT.read_text(encoding="utf-8") if _PROJECT.is_file() else ""
    if found := re.search(rf'^name = "{OURS}"\nversion = "([^"]+)"$', text, re.MULTILINE):
        return found[1]
    try:
        return version(OURS)
    except PackageNotFoundError as error:
        raise UserError(
            f"The version of {OURS} is not known, and files must say what made them.",
            expected=f"{OURS} installed, or pyproject.toml beside its packages",
            got="neither",
            remedy=f"pip install {OURS}, or copy pyproject.toml too",
        ) from error


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Package → version; one that is not installed is left out, but for ours, which is running."""
    found = {}
    for name in packages:
        try:
            found[name] = own_version() if name == OURS else version(name)
        except PackageNotFoundError:
            continue
    return found
