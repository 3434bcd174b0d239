"""What a user installs: the wheel's contents, import arrows, make."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def test_wheel_holds_three_packages_and_nothing_else(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in ("exporter", "plugins", "runtime", "tests", "engines"):
        ignored = shutil.ignore_patterns("__pycache__", "*-rtx*")
        shutil.copytree(ROOT / name, clone / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, clone)
    # Without isolation nothing is downloaded, if this interpreter has a setuptools that reads our pyproject.toml.
    isolation = [] if _setuptools() < 77 else ["--no-build-isolation"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        *isolation,
        "--wheel-dir",
        str(tmp_path),
        str(clone),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
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


def _setuptools() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


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
