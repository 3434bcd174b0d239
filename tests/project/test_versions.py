"""Our own version, where the package is installed and where its source tree alone is imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from exporter.cli.app import app
from plugins.errors import UserError
from plugins.library import library_path, library_version
from runtime import versions
from tests.support.paths import ROOT


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither turbotrt nor anything else has metadata."""

    def version(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", version)


def test_a_source_tree_knows_its_version(tmp_path: Path) -> None:
    """Another version than the installed one, whose metadata this interpreter has: the code that runs counts."""
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "plugins", tmp_path / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text.replace(f'"{versions.own_version()}"', '"7.8.9"', 1), "utf-8")
    code = "from runtime.versions import installed_versions; print(installed_versions(['turbotrt', 'no-such']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{'turbotrt': '7.8.9'}\n"


@pytest.mark.usefixtures("not_installed")
def test_an_engine_is_keyed_without_metadata() -> None:
    from exporter.builder.stage_engine import engine_key
    from exporter.graphs.stage_graph import tools
    from exporter.spec import export_spec
    from runtime.bundle import Profile

    assert tools()["turbotrt"] == versions.own_version()
    spec = export_spec(model="wan-tiny", gpu="rtx5090")
    assert len(engine_key(spec, Profile(min=1, opt=2, max=3), b"graph")) == 64
    ours, library = CliRunner().invoke(app, ["--version"]).stdout.splitlines()
    assert ours == f"turbotrt {versions.own_version()}"
    path = library_path()
    assert library == f"plugin library: {'none, Python plugins run' if path is None else library_version(path)}"


@pytest.mark.usefixtures("not_installed")
def test_code_of_no_known_version_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for project in (tmp_path / "none.toml", tmp_path / "others.toml"):
        monkeypatch.setattr(versions, "_PROJECT", project)
        with pytest.raises(UserError, match=r"version of turbotrt is not known(.|\n)*pyproject\.toml"):
            versions.own_version()
        (tmp_path / "others.toml").write_text('[project]\nname = "another"\nversion = "1.0"\n', "utf-8")


def test_the_installed_package_counts_without_a_source_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(versions, "_PROJECT", tmp_path / "none.toml")
    monkeypatch.setattr(versions, "version", lambda name: f"{name} 1.2.3")
    assert versions.own_version() == "turbotrt 1.2.3"
