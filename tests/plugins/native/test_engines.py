"""The real TensorRT for RTX with the library: its parser and builder make the same engines as with Python's plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("tensorrt_rtx")

from exporter.builder.child import BuildRequest
from exporter.builder.flavour import library_folder
from plugins.library import library_version
from plugins.plan import decode
from runtime.bundle import load_manifest
from tests.support.exported import Exported
from tests.support.native_build import shipped
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def library() -> Path:
    return shipped()


def build(exported: Exported, stage: str, host: Path | str, folder: Path, *, embed: bool = False) -> bytes:
    """The bytes of a stage's engine for the bundle's GPU, built as exports build, without address randomization."""
    manifest = load_manifest(exported.folder)
    limits = manifest.stage(stage).profile
    engine = folder / f"{stage}.engine"
    request = BuildRequest(
        onnx=str(exported.folder / manifest.stage(stage).onnx),
        engine=str(engine),
        log=str(folder / "log"),
        gpu=manifest.gpu.name,
        profile=(limits.min, limits.opt, limits.max),
    )
    (folder / "request.json").write_text(json.dumps(msgspec.to_builtins(request)))
    libraries = library_folder("tensorrt_rtx")
    assert libraries is not None
    link = folder / "libtensorrt_rtx.so"
    if not link.is_symlink():
        link.symlink_to(libraries / "libtensorrt_rtx.so.1")
    words = [str(folder / "request.json"), str(host), "embed" if embed else "plain"]
    command = ["setarch", "--addr-no-randomize", sys.executable, "-m", "tests.support.native_engine", *words]
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return engine.read_bytes()


def test_engines_are_the_same_bytes_with_either(exported: Exported, library: Path, tmp_path: Path) -> None:
    by_python = build(exported, "block", "python", tmp_path)
    by_library = build(exported, "block", library, tmp_path)
    assert by_python == by_library
    manifest = load_manifest(exported.folder)
    for name, file in manifest.plans.items():
        if name.startswith("block"):
            assert (exported.folder / file).read_bytes() in by_library, name
            assert decode((exported.folder / file).read_bytes()).op in library_version(library).ops


def test_an_engine_may_hold_the_library(exported: Exported, library: Path, tmp_path: Path) -> None:
    """Whole, byte for byte, so that a runtime that allows host code needs no other file."""
    plain = build(exported, "head", library, tmp_path)
    whole = build(exported, "head", library, tmp_path, embed=True)
    assert library.read_bytes() in whole
    assert library.read_bytes() not in plain
    assert len(whole) - len(plain) < library.stat().st_size + 4096
