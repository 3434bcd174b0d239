"""What a user installs and reads: the wheel's contents, import arrows, the README's links and commands, make."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from exporter.bundle.vram import vram_estimate
from exporter.cli.app import app
from exporter.cli.catalogue import gigabytes
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.networks.dit.weights import packed_bytes
from tests.support.documents import shell_lines
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()
DOCUMENTS = ("README.md", "engines/README.md")


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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document: str) -> None:
    path = ROOT / document
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if not link.startswith("http")]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}, link


def test_readme_commands_parse() -> None:
    group: Any = get_command(app)
    seen = set()
    for line in shell_lines(ROOT / "README.md"):
        words = shlex.split(line)
        words = ["turbotrt", *words[1:]] if words[0] == "env" else words
        if words[0] == "make":
            continue
        assert words[0] == "turbotrt", line
        command = group.commands[words[1]]
        command.make_context(words[1], words[2:])  # raises on an unknown option or a missing one
        seen.add(words[1])
    assert seen == set(group.commands)


def test_readme_make_commands_are_targets() -> None:
    lines = [line for line in shell_lines(ROOT / "README.md") if line.startswith("make ")]
    assert "make export MODEL=wan2.1-14b-720p GPU=rtx5090" in lines
    assert "make test" in lines
    makefile = (ROOT / "Makefile").read_text()
    for line in lines:
        assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line


def test_readme_tables_are_the_codes() -> None:
    models = README.partition("## Models")[2].partition("\n## ")[0]
    for model in MODELS.values():
        (row,) = re.findall(rf"^\| {re.escape(model.name)} \| (\d.*)\|$", models, re.MULTILINE)
        for fact in (model.tokens(), model.max_tokens):
            assert f"| {fact:,} |" in f"| {row}", model.name
        assert gigabytes(packed_bytes(model)) in row
        assert gigabytes(vram_estimate(model)) in row
    table = README.partition("## GPUs")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z][\w, -]+) \| (\d+)[^|]*\| `(\w+)` \|", table, re.MULTILINE)
    listed = {name: (int(sm), flavour) for names, sm, flavour in rows for name in names.split(", ")}
    assert listed == {gpu.name: (gpu.sm, gpu.flavour) for gpu in GPUS.values()}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_export_needs_a_model_and_a_gpu() -> None:
    missing = subprocess.run(["make", "export", "MODEL=wan-tiny"], cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "usage: make export" in missing.stderr
    command = ["make", "--dry-run", "-j4", "export", "MODEL=wan-tiny", "GPU=rtx5090", "ARGS=--onnx-only"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "turbotrt export --model 'wan-tiny' --gpu 'rtx5090' --onnx-only" in planned.stdout
