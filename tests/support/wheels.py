"""Wheels made from copies of the sources, where nothing compiles: no compiler is on the path."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def copied(target: Path, *more: str, library: Path | None = None) -> Path:
    """What an installation is made from, and ``more``; the plugin library with it where one is given."""
    ignored = shutil.ignore_patterns("__pycache__", "*-rtx*", "*.so")
    for name in ("exporter", "plugins", "runtime", "pyproject.toml", "setup.py", "README.md", "LICENSE", *more):
        target.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target)
    if library is not None:
        shutil.copy(library, target / "plugins" / "native")
    return target


def without_compiler(folder: Path) -> dict[str, str]:
    """An environment whose path leads to an empty folder alone."""
    folder.mkdir(parents=True, exist_ok=True)
    return os.environ | {"PATH": str(folder), "CC": "", "CXX": ""}


def built_wheel(sources: Path, out: Path) -> tuple[Path, str]:
    """The wheel that pip makes of the sources, and what it says with -v."""
    # Without isolation nothing is downloaded, if this interpreter has a setuptools that reads our pyproject.toml.
    isolation = [] if _setuptools() < 77 else ["--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", *isolation, "--wheel-dir", str(out)]
    environment = without_compiler(out / "path")
    done = subprocess.run([*command, str(sources)], check=True, capture_output=True, text=True, env=environment)
    (wheel,) = out.glob("*.whl")
    return wheel, done.stdout + done.stderr


def _setuptools() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0
