"""Builds the plugin library for tests: as it ships, and with sanitizers beside the probe that leads plugins' lives."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from plugins.library import FILE_NAME, library_path
from tests.support.paths import ROOT

PREBUILT = "TURBOTRT_NATIVE_TESTS"
_PROBE = ("-DTURBOTRT_PROBE=ON", "-DTURBOTRT_FETCH=ON")  # it has TensorRT 10's registry, as the fetched headers do
_BUILD = ROOT / "build" / "native-tests"
_SOURCES = ROOT / "plugins" / "native"


@dataclass(frozen=True)
class Native:
    """A build's folder."""

    folder: Path

    @property
    def library(self) -> Path:
        return self.folder / FILE_NAME

    @property
    def probe(self) -> Path:
        return self.folder / "probe"

    @property
    def driver(self) -> Path:
        """The folder of the stand-in libcuda.so.1."""
        return self.folder / "driver"


def can_build() -> bool:
    """Whether this machine has what builds the library."""
    return shutil.which("g++") is not None and _cmake() is not None


def _cmake() -> str | None:
    """This environment's, as make native takes it, else the system's."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which("cmake", path=os.pathsep.join(folders))


@cache
def sanitized() -> Native:
    """The library and the probe with address and undefined-behaviour sanitizers, built where they are older."""
    flags = [*_PROBE, "-DTURBOTRT_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS=-O1 -g1"]
    return _built("sanitized", [*flags, "-DCMAKE_BUILD_TYPE=None"])


@cache
def shipped() -> Path:
    """The library as it ships: that of ``make native`` where no source is newer, else one built for tests alone."""
    made = library_path()
    newest = max(path.stat().st_mtime for path in _sources())
    if made is not None and made.stat().st_mtime >= newest:
        return made
    return _built("shipped", []).library


@cache
def with_probe() -> Native:
    """The library as it ships beside the probes; on a machine without compilers the folder that PREBUILT names."""
    if folder := os.environ.get(PREBUILT):
        return Native(Path(folder))
    return _built("probe", [*_PROBE])


def _sources() -> Iterator[Path]:
    yield from (_SOURCES / "src").iterdir()
    yield from (_SOURCES / "CMakeLists.txt", _SOURCES / "facts.py", ROOT / "plugins" / "registry.py")


def _built(name: str, flags: list[str]) -> Native:
    """A build in a folder of its own, which stays: the next session builds only what has changed since."""
    if (cmake := _cmake()) is None or not can_build():
        pytest.skip("no g++ or no cmake")
    folder = _BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", str(_SOURCES), "-B", str(folder), f"-DPython3_EXECUTABLE={sys.executable}", *flags]
    with _alone(folder):
        for command in ([*configure, f"-DTURBOTRT_OUTPUT={folder}"], [cmake, "--build", str(folder), "--parallel"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return Native(folder)


def _environment() -> dict[str, str]:
    """This process's, less what would give the compilers another library."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "LD_LIBRARY_PATH")}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
