"""The plugin library (plugins/native/), and the one way by which plugins come into TensorRT: as it, or as Python's.

Importing this module imports no TensorRT; the flavour's module is passed in. What a library is made for is read off
its file, so that nobody has to load it to see: a library registers itself where it is loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from plugins import tensorrt_plugin
from plugins.errors import UserError
from plugins.plan import FORMAT_VERSION

PluginHost = Literal["library", "python"]
HostChoice = Literal["auto", "library", "python"]
HOST_CHOICES: tuple[HostChoice, ...] = get_args(HostChoice)

FILE_NAME = "libturbotrt_plugins.so"
MARKER = b"turbotrt-plugins\n"  # begins what a library's file says of itself: lines "name value", ended by a NUL
_BUILT = Path(__file__).parent / "native" / FILE_NAME
_REMEDY = 'build it again with "make native", or take the Python plugins'


@dataclass(frozen=True)
class LibraryVersion:
    """What a library says of itself: turbotrt's version, plan format, plugin version, its ops, TensorRT's headers."""

    version: str
    plan_format: int
    plugin_version: str
    ops: tuple[str, ...]
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.version} (plan format {self.plan_format}, TensorRT {self.tensorrt})"


def library_path() -> Path | None:
    """The library in this installation, or None where none was built."""
    return _BUILT if _BUILT.is_file() else None


def installed_library(ops: Iterable[str]) -> Path:
    """The library in this installation. Raises UserError where none was built, or one of another turbotrt or op."""
    path = _present()
    _check(path, ops)
    return path


def _present() -> Path:
    if (path := library_path()) is None:
        raise UserError(
            "There is no plugin library in this installation.",
            expected=FILE_NAME,
            got=f"none in {_BUILT.parent}",
            remedy='build it with "make native", or take the Python plugins',
        )
    return path


def library_version(path: Path) -> LibraryVersion:
    """What the library in this file is, without loading it. Raises UserError where it is none of ours."""
    try:
        found = re.search(re.escape(MARKER) + rb"([\x20-\x7e\n]{1,4096})\0", path.read_bytes())
    except OSError as error:
        raise _unusable(path, str(error)) from error
    if found is None:
        raise _unusable(path, "a file that does not say so")
    said = dict(line.split(" ", 1) for line in found[1].decode("ascii").splitlines())
    try:
        return LibraryVersion(
            version=said["version"],
            plan_format=int(said["plan-format"]),
            plugin_version=said["plugin-version"],
            ops=tuple(said["ops"].split(" ")),
            tensorrt=said["tensorrt"],
        )
    except (KeyError, ValueError) as error:
        raise _unusable(path, f"a file that leaves out {error}") from error


def _unusable(path: Path, got: str) -> UserError:
    return UserError(
        f"{path} is no plugin library of turbotrt's.", expected="what make native builds", got=got, remedy=_REMEDY
    )


def _check(path: Path, ops: Iterable[str]) -> None:
    """Raise UserError where the library was not built from what is running."""
    here = LibraryVersion("", FORMAT_VERSION, tensorrt_plugin.PLUGIN_VERSION, tuple(ops), "")
    built = library_version(path)
    differences = [
        f"{label} {getattr(built, field)}, not {getattr(here, field)}"
        for field, label in (("plan_format", "plan format"), ("plugin_version", "plugin version"))
        if getattr(built, field) != getattr(here, field)
    ]
    if missing := sorted(set(here.ops) - set(built.ops)):
        differences.append(f"no {', '.join(missing)}")
    if differences:
        raise UserError(
            f"{path} was built from another turbotrt.",
            expected="a library built from the sources that run",
            got="; ".join(differences),
            remedy=_REMEDY,
        )


@dataclass(frozen=True)
class _Taken:
    """How a flavour's plugins were registered; ``handle`` is TensorRT's of the library, which goes with it."""

    host: PluginHost
    path: Path | None
    handle: Any


_taken: dict[str, _Taken] = {}


def load(trt: Any, path: Path) -> None:
    """Register the library with this flavour's plugin registry, once a process. Raises UserError."""
    if (taken := _taken.get(trt.__name__)) is not None:
        _check_same(trt, taken, "library", path)
        return
    handle = trt.get_plugin_registry().load_library(str(path.resolve()))
    if handle is None:
        raise UserError(
            f"{trt.__name__} does not load the plugin library {path}.",
            got="what TensorRT printed before this",
            remedy=_REMEDY,
        )
    _taken[trt.__name__] = _Taken("library", path, handle)


def register(trt: Any, ops: Iterable[str], host: HostChoice = "auto") -> PluginHost:
    """Register plugins for these ops with this flavour of TensorRT, once a process; which were taken.

    ``auto``: the library where one is installed, Python's otherwise; and what the process has already. Raises UserError
    where there is no library, where it is another turbotrt's, or where the process has the other kind.
    """
    ops = tuple(ops)
    if trt.__name__ not in _taken and (present := _registered_before(trt, ops)) is not None:
        _taken[trt.__name__] = _Taken(present, None, None)
    if (taken := _taken.get(trt.__name__)) is not None:
        if host != "auto":
            _check_same(trt, taken, host, taken.path)
        return taken.host
    if host == "library" or (host == "auto" and library_path() is not None):
        load(trt, installed_library(ops))
        return "library"
    tensorrt_plugin.register(trt, ops)
    _taken[trt.__name__] = _Taken("python", None, None)
    return "python"


def _registered_before(trt: Any, ops: Iterable[str]) -> PluginHost | None:
    """Whose plugins the registry has without us: of a library that the program opened, or Python's; None: none."""
    if not set(ops) <= {creator.name for creator in trt.get_plugin_registry().all_creators}:
        return None
    return "python" if tensorrt_plugin.is_registered(trt) else "library"


def _check_same(trt: Any, taken: _Taken, host: PluginHost, path: Path | None) -> None:
    """Raise UserError where a process that has one kind of plugins is asked for another."""
    if (taken.host, taken.path) != (host, path):
        library = f"the library {taken.path}" if taken.path else "a library that the program opened"
        names: dict[PluginHost, str] = {"library": library, "python": "the Python plugins"}
        raise UserError(
            f"This process has registered other plugins with {trt.__name__}.",
            expected=f"the {host} plugins" if path is None else str(path),
            got=names[taken.host],
            remedy="choose one kind for a process",
        )


def main() -> int:
    """``python -m plugins.library``: print where the library is; status 2 with the reason where there is none."""
    try:
        sys.stdout.write(f"{_present()}\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
