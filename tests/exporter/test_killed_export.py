"""An export that the system kills: the old bundle stays, and the next export clears up behind it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from exporter.bundle.swap import staging_folder
from exporter.bundle_lock import bundle_turn
from exporter.cli.app import app
from plugins.errors import UserError
from runtime.bundle import LOCK_NAME, load_manifest, sha256_of, verify_files
from tests.support.exported import Exported
from tests.support.paths import ROOT

NAME = "wan-tiny-rtx5090"
ARGUMENTS = ["export", "--model", "wan-tiny", "--gpu", "rtx5090", "--components", "dit", "--topk", "0.3", "--out"]


def start(out: Path) -> subprocess.Popen[bytes]:
    """The command, its builder in the same process group."""
    command = [sys.executable, "-m", "exporter.cli", *ARGUMENTS, str(out)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True)


def contents(folder: Path) -> dict[str, str]:
    """All files but the lock, which is there while a process holds it."""
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.name != LOCK_NAME}


@pytest.fixture
def out(exported: Exported, tmp_path: Path) -> Path:
    """An output folder with a copy of the session's bundle."""
    shutil.copytree(exported.folder, tmp_path / "engines" / NAME)
    return tmp_path / "engines"


def test_a_killed_export_leaves_the_old_bundle(out: Path) -> None:
    before = contents(out / NAME)
    export = start(out)
    half_made = out / f".{NAME}.partial" / "block.onnx"
    try:
        while not half_made.exists() and export.poll() is None:
            time.sleep(0.01)
    finally:
        os.killpg(export.pid, signal.SIGKILL)
    assert export.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert half_made.exists()
    assert contents(out / NAME) == before

    app([*ARGUMENTS, str(out)], standalone_mode=False)
    manifest = load_manifest(out / NAME)
    assert manifest.sampler.topk_milli == 300
    assert verify_files(out / NAME, manifest) == []
    assert [path.name for path in out.iterdir()] == [NAME]


def test_a_bundle_that_was_moved_aside_comes_back(out: Path) -> None:
    """Killed between the two renames by which the new one takes its place."""
    before = contents(out / NAME)
    (out / NAME).rename(out / f".{NAME}.previous")
    (out / f".{NAME}.partial").mkdir()
    (out / f".{NAME}.partial" / "half.engine").write_bytes(b"half")
    with suppress(UserError), bundle_turn(out / NAME, print) as turn, staging_folder(turn) as staging:
        assert contents(out / NAME) == before
        assert list(staging.iterdir()) == []
        raise UserError("The next one fails.")
    assert contents(out / NAME) == before
    assert [path.name for path in out.iterdir()] == [NAME]
