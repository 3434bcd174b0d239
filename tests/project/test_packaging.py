"""What a user installs: the wheel's contents, import arrows, make."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from plugins.library import library_path
from tests.support.paths import ROOT
from tests.support.wheels import built_wheel, copied


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources as they are checked out, so without a library."""
    return copied(tmp_path_factory.mktemp("sources") / "clone", "tests", "engines", "Makefile")


def test_wheel_holds_three_packages_and_nothing_else(clone: Path, tmp_path: Path) -> None:
    wheel, said = built_wheel(clone, tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert [line.strip() for line in said.splitlines() if "plugin library" in line] == [
        "turbotrt: no plugin library in plugins/native, Python's plugins run (make native)"
    ]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    tops = {name.partition("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"exporter", "plugins", "runtime", info}
    assert f"{info}/licenses/LICENSE" in names
    assert "turbotrt = exporter.cli.app:main" in entry_points
    assert "export = exporter.cli.app:export_main" in entry_points
    assert "[turbotrt.backends]\ntorch = exporter.torch_backend.backend:TORCH" in entry_points
    sources = {
        p.relative_to(clone).as_posix()
        for top in ("exporter", "plugins", "runtime")
        for p in (clone / top).rglob("*.py")
    }
    assert sources <= set(names)
    assert {f"{package}/py.typed" for package in ("exporter", "plugins", "runtime")} <= set(names)


@pytest.mark.skipif(library_path() is None, reason="the plugin library is not built (make native)")
def test_the_library_goes_along_while_it_is_there(clone: Path, tmp_path: Path) -> None:
    """And no longer: setuptools keeps what it copied for an earlier wheel."""
    path = library_path()
    assert path is not None
    inside = "plugins/native/" + path.name
    shutil.copy(path, clone / inside)
    try:
        wheel, said = built_wheel(clone, tmp_path / "with")
    finally:
        (clone / inside).unlink()
    assert "plugin library" not in said
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(inside) == path.read_bytes()
    wheel, _ = built_wheel(clone, tmp_path / "without")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert inside not in archive.namelist()


def test_runtime_imports_nothing_of_the_exporter(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys
import runtime
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    importlib.import_module(module.name)
heavy = ("torch", "triton", "onnx", "onnxscript", "onnx_graphsurgeon", "exporter", "typer", "rich")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_imports_go_one_way() -> None:
    forbidden = {"plugins": {"exporter", "runtime"}, "runtime": {"exporter"}}
    for package, others in forbidden.items():
        for path in (ROOT / package).rglob("*.py"):
            assert not others & _imported(path), path


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_export_needs_a_model_and_a_gpu() -> None:
    missing = subprocess.run(["make", "export", "MODEL=wan-tiny"], cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "usage: make export" in missing.stderr
    command = ["make", "--dry-run", "-j4", "export", "MODEL=wan-tiny", "GPU=rtx5090", "ARGS=--onnx-only"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "turbotrt export --model 'wan-tiny' --gpu 'rtx5090' --onnx-only" in planned.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_wheel_builds_the_library_first_and_names_the_platform_last() -> None:
    planned = subprocess.run(["make", "--dry-run", "wheel"], cwd=ROOT, capture_output=True, text=True, check=True)
    order = [planned.stdout.index(step) for step in ("cmake --build", "pip wheel", "auditwheel repair")]
    assert order == sorted(order)
