"""A build's process: what it imports, from where, and that it does not outlive its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.builder import parent as build
from exporter.builder.child import BuildRequest
from exporter.builder.parent import build_engine, module_path
from plugins.errors import UserError
from tests.support.paths import ROOT

CODE = """
import sys
import exporter.builder.child, exporter.builder.flavour, exporter.gpus
import plugins.registry, plugins.tensorrt_plugin, runtime.dims
print([name for name in ("numpy", "torch", "triton", "onnx", "typer", "rich", "cuda") if name in sys.modules])
"""


def test_a_build_loads_little() -> None:
    """TensorRT orders tables by addresses, which follow from all that was loaded before."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def asked(folder: Path) -> BuildRequest:
    """A graph that is none: the child gets as far as TensorRT's parser."""
    (folder / "bad.onnx").write_bytes(b"bad")
    onnx, engine, log = (str(folder / f"bad.{name}") for name in ("onnx", "engine", "log"))
    return BuildRequest(onnx=onnx, engine=engine, log=log, gpu="rtx5090", profile=(16, 1000, 2000))


@pytest.mark.parametrize("given", [None, "", ":"], ids=["no-PYTHONPATH", "empty", "colon"])
def test_no_code_comes_from_the_current_folder(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``python -m`` and ``python -c``: modules of every name that the child imports lie there."""
    pytest.importorskip("tensorrt_rtx")
    hostile = tmp_path / "here"
    hostile.mkdir()
    for name in ("msgspec", "json", "runpy", "ctypes", "re", "exporter", "plugins", "tensorrt_rtx", "sitecustomize"):
        (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(hostile)
    monkeypatch.setattr(sys, "path", [str(hostile), "", *sys.path])
    if given is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", given)
    with pytest.raises(UserError, match="ended with status 1") as caught:
        build_engine(asked(tmp_path), lambda *_: None)
    assert "Failed to parse the ONNX model" in str(caught.value), "it did not come to the parser"
    assert not (tmp_path / "ran").exists()


def test_a_pythonpath_that_is_given_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert module_path()[0] == str(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert str(tmp_path) not in module_path()
    assert str(ROOT) in module_path()


def test_libraries_are_not_looked_for_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty part of the path is that folder: a trailing colon is enough."""
    monkeypatch.setattr(build, "library_folder", lambda _: tmp_path)
    for count, (before, after) in enumerate((("", ""), (":", ""), ("/a:", ":/a"), ("/a::/b", ":/a:/b"))):
        monkeypatch.setenv("LD_LIBRARY_PATH", before)
        (folder := tmp_path / str(count)).mkdir()
        assert build._environment(asked(tmp_path), folder)["LD_LIBRARY_PATH"] == f"{folder}{after}"


def test_the_child_dies_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with SIGKILL, in a fork: the parent cleans up nothing, and what it left is removed by the next build."""
    monkeypatch.setattr(build, "library_folder", lambda _: None)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    started = tmp_path / "started"
    body = f"""
import os, time
from exporter.builder.child import die_with
die_with({{parent}})
open({str(started) + "~"!r}, "w").write(str(os.getpid()))
os.rename({str(started) + "~"!r}, {str(started)!r})
time.sleep(60)
"""
    monkeypatch.setattr(build, "_START", "import sys\nsys.path[:] = {path!r}" + body)
    if not (parent := os.fork()):
        build_engine(asked(tmp_path), lambda *_: None)
        os._exit(1)
    while not started.exists():
        time.sleep(0.01)
    child = int(started.read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    monkeypatch.setattr(build, "_START", "")
    with pytest.raises(UserError, match="failed: the builder"):
        build_engine(asked(tmp_path), lambda *_: None)
    assert list((tmp_path / "tmp").iterdir()) == []
