"""Which plugins engines get from this installation, and what a bundle brings itself: for ``list`` and ``inspect``."""

from __future__ import annotations

from typing import Any

from plugins.errors import UserError
from plugins.library import installed_library, library_path, library_version
from plugins.registry import OPS
from runtime.bundle import Manifest, sha256_of


def plugins_here() -> dict[str, Any]:
    """``host``: library, python, or None where the library that is here does not fit; its path, version and problem."""
    if (path := library_path()) is None:
        return {"host": "python", "library": None, "version": None, "problem": None}
    found = {"library": str(path), "version": None, "problem": None}
    try:
        installed_library(OPS)
    except UserError as error:
        return {"host": None, **found, "problem": str(error)}
    return {"host": "library", **found, "version": str(library_version(path))}


def plugins_line() -> str:
    """The same as a line of text."""
    here = plugins_here()
    if here["host"] == "python":
        return "Python's: this installation has no plugin library (make native builds it)"
    return str(here["problem"]) if here["host"] is None else f"the library {here['library']}, {here['version']}"


def bundle_plugins(manifest: Manifest) -> str:
    """Where the plugins of a bundle's engines come from."""
    if (embedded := manifest.embedded_library) is None:
        return plugins_line()
    path = library_path()
    ours = path is not None and sha256_of(path) == embedded
    which = "this installation's" if ours else "not this installation's"
    return f"in the engines: a library of sha256 {embedded[:12]}…, {which}; whoever loads them runs its code"
