"""The library as a file, and how plugins come into TensorRT: by it or by Python, once a process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from plugins import library
from plugins.errors import UserError
from plugins.plan import FORMAT_VERSION
from plugins.registry import OPS
from runtime.versions import own_version
from tests.support.native_build import sanitized, shipped
from tests.support.native_probe import TENSORRT_10, TENSORRT_11, Probe
from tests.support.paths import ROOT

EXPORTS = {"getCreators", "setLoggerFinder", "initTurbotrtPlugins", "turbotrtPluginsVersion"}


@pytest.fixture(scope="module")
def built() -> Path:
    return shipped()


def in_a_process(code: str, *words: object) -> str:
    """What a new Python prints; ``trt``, ``library``, ``OPS``, ``Path`` and ``UserError`` are there."""
    start = """
import sys
from pathlib import Path
import tensorrt_rtx as trt
from plugins import library
from plugins.errors import UserError
from plugins.registry import OPS
def names(): return {creator.name for creator in trt.get_plugin_registry().all_creators}
"""
    command = [sys.executable, "-c", start + code, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_it_says_what_it_is(built: Path) -> None:
    said = library.library_version(built)
    assert said.version == own_version()
    assert (said.plan_format, said.ops) == (FORMAT_VERSION, tuple(OPS))
    assert re.fullmatch(r"1\d\.\d+\.\d+", said.tensorrt)
    assert str(said).startswith(f"{own_version()} (plan format {FORMAT_VERSION}, TensorRT ")


def test_it_exports_four_functions_and_needs_no_cuda(built: Path) -> None:
    listed = subprocess.run(["nm", "-D", built], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^\w+ [A-Z] (\S+)$", listed, re.MULTILINE)) == EXPORTS
    needed = subprocess.run(["readelf", "-d", built], capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"NEEDED.*\[(\S+?)\.so[.\d]*\]", needed))
    assert libraries <= {"libstdc++", "libgcc_s", "libc", "libm", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_tensorrt_takes_it_once_a_process(built: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    code = """
path = Path(sys.argv[1])
library.load(trt, path)
library.load(trt, path)
print(set(OPS) <= names(), library.register(trt, OPS))
try:
    library.register(trt, OPS, "python")
except UserError as error:
    print(error)
"""
    first, *error = in_a_process(code, built).splitlines()
    assert first == "True library"
    assert error[0] == "This process has registered other plugins with tensorrt_rtx."


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_the_library_where_there_is_one(built: Path, there: bool) -> None:
    pytest.importorskip("tensorrt_rtx")
    code = "library._BUILT = Path(sys.argv[1])\nprint(library.register(trt, OPS), set(OPS) <= names())"
    assert in_a_process(code, built if there else ROOT / "none") == f"{'library' if there else 'python'} True"


def test_python_is_taken_by_name(built: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    code = """
library._BUILT = Path(sys.argv[1])
print(library.register(trt, OPS, "python"), library.register(trt, OPS, "python"), library.register(trt, OPS))
"""
    assert in_a_process(code, built) == "python python python"


def test_what_the_program_opened_is_taken_as_it_is(built: Path) -> None:
    """TensorRT refuses a library whose plugins it has already, as Polygraphy and LD_PRELOAD bring them."""
    pytest.importorskip("tensorrt_rtx")
    code = """
import ctypes
library._BUILT = Path(sys.argv[1])
ctypes.CDLL(sys.argv[1])
print(set(OPS) <= names(), library.register(trt, OPS), library.register(trt, OPS, "library"))
try:
    library.register(trt, OPS, "python")
except UserError as error:
    print(error)
"""
    first, *error = in_a_process(code, built).splitlines()
    assert first == "True library library"
    assert "a library that the program opened" in "".join(error)


class Registry:
    """A TensorRT that loads no library."""

    __name__ = "tensorrt_none"
    all_creators = ()

    def get_plugin_registry(self) -> Registry:
        return self

    def load_library(self, path: str) -> None:
        return None


def test_what_cannot_be_used_is_told(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_BUILT", tmp_path / library.FILE_NAME)
    assert library.library_path() is None
    with pytest.raises(UserError, match=r"no plugin library in this installation(.|\n)*make native"):
        library.register(Registry(), OPS, "library")
    for content in (b"\x7fELF" + bytes(100), library.MARKER + b"version 1\n\0", library.MARKER + b"version 0.1.0\n"):
        (tmp_path / library.FILE_NAME).write_bytes(content)
        with pytest.raises(UserError, match="is no plugin library"):
            library.register(Registry(), OPS)
    with pytest.raises(UserError, match="is no plugin library"):
        library.library_version(tmp_path)
    data = built.read_bytes()
    others = {
        "plan format 9, not 1": data.replace(b"plan-format 1\n", b"plan-format 9\n"),
        "plugin version 7, not 1": data.replace(b"plugin-version 1\n", b"plugin-version 7\n"),
        "no RmsNorm": data.replace(b" RmsNorm ", b" RmsNorx "),
    }
    for words, changed in others.items():
        assert changed != data
        (tmp_path / library.FILE_NAME).write_bytes(changed)
        with pytest.raises(UserError, match=rf"was built from another turbotrt(.|\n)*{words}"):
            library.register(Registry(), OPS)
    (tmp_path / library.FILE_NAME).write_bytes(data)
    with pytest.raises(UserError, match="does not load the plugin library"):
        library.register(Registry(), OPS)


@pytest.mark.parametrize("version", [TENSORRT_10, TENSORRT_11], ids=["TensorRT 10", "TensorRT 11"])
def test_opening_it_registers_the_plugins_with_the_program(version: int) -> None:
    """As LD_PRELOAD, --staticPlugins and Triton have it; a C++ program may ask for a namespace of its own."""
    with Probe(sanitized(), version) as probe:
        assert probe.ask("registered").split()[1:] == [f"::{op}" for op in OPS]
        assert probe.ask("init ours") == "taken"
        assert probe.ask("init ours") == "taken"
        assert probe.ask("registered").split()[1:] == [f"{space}::{op}" for space in ("", "ours") for op in OPS]


def test_a_program_without_tensorrt_may_open_it() -> None:
    with Probe(sanitized(), 0) as probe:
        assert probe.ask("registered") == "registered"
