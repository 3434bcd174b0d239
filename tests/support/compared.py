"""What tests of ``turbotrt compare`` share: a run of it, weights changed in a bundle, Polygraphy's command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from exporter.compare.run import compare
from exporter.compare.spec import CompareSpec, Comparison
from tests.support.paths import ROOT
from tests.support.progress import SilentProgress

Tensors = dict[str, Any]


def run(bundle: Path, checkpoint: Path | str | None, out: Path, *, report: bool = False, **options: Any) -> Comparison:
    """A comparison of one step, if the options say nothing else; its page, which costs most, only if asked for."""
    spec = CompareSpec(bundle, None if checkpoint is None else str(checkpoint), out=out, **{"steps": 1, **options})
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr("exporter.compare.run.write_report", lambda *_: None)
        return compare(spec, SilentProgress())


def weights_changed(bundle: Path, change: Callable[[Tensors], Any], name: str = "weights.safetensors") -> None:
    tensors = load_file(bundle / name)
    change(tensors)
    save_file(tensors, bundle / name)


def polygraphy(*arguments: str) -> str:
    """What Polygraphy's command line prints."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["polygraphy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def typed(lines: list[str], folder: Path, tmp_path: Path, status: int = 0) -> str:
    """What the lines print, typed one after another in the bundle's folder; the last one ends with the status."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}\n" + "\n".join(lines)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr
