"""turbotrt bench generate: a bundle of random weights, what is timed and what is not, and the rows of the table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from exporter.bench import generate as bench
from exporter.cli.app import app
from plugins.user_cache import VARIABLE
from runtime.bundle import load_manifest, verify_files
from runtime.media.parts.times import BACKEND, Part

TIMES = [Part(BACKEND, 3.0), Part("text", 0.5), Part("step 1", 1.0), Part("step 2", 1.0), Part("VAE decode", 2.0)]


class Told:
    """In place of a pipeline: every video takes eight seconds by the clock below, the decoders two and one."""

    times = TIMES

    def __init__(self, clock: list[float], prompts: list[str]) -> None:
        self.clock, self.prompts = clock, prompts

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, prompt: str, out: Path, decoder: str) -> None:
        self.prompts.append(prompt)
        self.clock[0] += 8

    def stream(self, latents: Any, decoder: str) -> list[Any]:
        self.clock[0] += 2 if decoder == "full" else 1
        return [np.zeros(1)]


def test_the_rows_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, prompts, seen = [0.0], list[str](), list[bool]()

    def process(command: list[str], **_: Any) -> Any:
        folder = Path(command[command.index("--bundle") + 1])
        seen.append(verify_files(folder, load_manifest(folder)) == [])
        Path(command[command.index("--times") + 1]).write_text(
            json.dumps([{"name": part.name, "seconds": part.seconds} for part in TIMES])
        )
        prompts.append(command[command.index("--prompt") + 1])
        clock[0] += 10
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock[0], sleep=lambda seconds: None))
    monkeypatch.setattr(bench, "VideoPipeline", SimpleNamespace(load=lambda *_, **__: Told(clock, prompts)))
    monkeypatch.setattr(subprocess, "run", process)
    monkeypatch.delenv(VARIABLE)
    out = tmp_path / "figures.json"
    result = CliRunner().invoke(app, ["bench", "generate", "--model", "wan-tiny", "--out", str(out), "--repeats", "2"])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    rows = {row["row"]: row for row in found["rows"]}
    assert {name: row["seconds"] for name, row in rows.items() if not name.startswith("verify")} == {
        "VAE decode, frames in host memory": 2,
        "tiny decoder, frames in host memory": 1,
        "resident, whole": 8,
        "resident, whole, tiny decoder": 8,
        "resident, all but steps and VAE": 4,
        "CLI, the whole process": 10,
        "CLI, less importing torch": 7,
        "CLI, all but torch, steps and VAE": 3,
    }
    assert {name for name, _ in bench.TARGETS} <= set(rows)
    assert all(len(row["runs"]) == 2 for row in rows.values())
    assert len(set(prompts)) == len(prompts) == 3 * (bench.WARM_UPS + 2)
    assert all(seen)
    assert "resident, whole" in result.stdout
    import os

    assert VARIABLE not in os.environ
