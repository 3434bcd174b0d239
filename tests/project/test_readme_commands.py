"""README's commands, run as they stand there but for the model: wan-tiny, its DiT alone, the files named at hand.

What needs a GPU must end with one message and status 2 where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT

pytest.importorskip("tensorrt_rtx")

from exporter.models import MODELS
from tests.support.checkpoints import canonical_state_dict, save_safetensors
from tests.support.documents import shell_lines
from tests.support.exported import Exported

NEED_A_GPU = ("generate", "bench", "tune")
LINES = [line for line in shell_lines(ROOT / "README.md") if line.startswith("turbotrt ")]


def tiny(line: str) -> str:
    """The line for wan-tiny; every bundle of the README is the one that the session exported."""
    line = line.replace("high.pth,low.pth", "turbowan.pth")
    line = re.sub(r"engines/wan[\w.-]+", "engines/wan-tiny-rtx5090", line)
    line = re.sub(r"--model \S+", "--model wan-tiny", line)
    return line + " --components dit" if line.startswith("turbotrt export") else line


@pytest.fixture(scope="module")
def folder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a bundle and the checkpoints that README's lines name."""
    made = tmp_path_factory.mktemp("readme")
    shutil.copytree(exported.folder, made / "engines" / exported.folder.name)
    state = canonical_state_dict(MODELS["wan-tiny"])
    plain = {name: tensor for name, tensor in state.items() if "proj_l" not in name}
    save_safetensors(made / "wan.safetensors", plain)
    for name, tensors in (("turbowan", state), ("sla", state), ("rcm", plain)):
        torch.save(tensors, made / f"{name}.pth")
    save_safetensors(made / "prompt.safetensors", {"text_embeds": torch.randn(7, 4096)})
    return made


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_runs(line: str, folder: Path) -> None:
    command = tiny(line)
    # wan-tiny's text encoder and VAE are timed on the CPU too.
    needs_gpu = command.split()[1] in NEED_A_GPU and "bench media" not in command
    if needs_gpu and torch.cuda.is_available():
        pytest.skip("answers differ where there is a GPU")
    script = f"{sys.executable} -m exporter.cli {command.removeprefix('turbotrt ')}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == (2 if needs_gpu else 0), run.stdout[-2000:] + run.stderr[-2000:]
    if needs_gpu:
        assert "Traceback" not in run.stderr
        assert re.search(r"GPU|driver|CUDA|VAE", run.stderr, re.IGNORECASE), run.stderr
