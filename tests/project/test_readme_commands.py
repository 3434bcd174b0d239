"""The documents' commands, run as they stand there but for the model: wan-tiny, its DiT alone, the files named at hand.

In this process, through the command line's own entry; one of them by bash. What needs a GPU must end with one message
and status 2 where there is none.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.support.documents import DOCUMENTS, shell_lines
from tests.support.paths import ROOT

pytest.importorskip("tensorrt_rtx")

from exporter.bench.vae import bench_vae
from exporter.bench.vae_layers import bench_layers
from exporter.cli.app import app
from exporter.models import MODELS
from plugins.library import library_path
from tests.support.checkpoints import canonical_state_dict, save_safetensors
from tests.support.exported import Exported

NEED_A_GPU = ("generate", "bench", "tune", "selftest")
SMALL = [(2, 4, 6)]  # latents (T, H, W), for the VAE that is timed
BY_BASH = "turbotrt inspect engines/wan-tiny-rtx5090"


def tiny(line: str) -> str:
    """The line for wan-tiny; every bundle of the documents is the one that the session exported.

    Text encoder and VAE are left out: tests/exporter/test_components.py exports them.
    """
    if "bench generate" in line:  # for a GPU it asks before anything else; wan-tiny has a test of its own
        return line
    line = line.replace("high.pth,low.pth", "turbowan.pth")
    line = re.sub(r" --(text-encoder|vae) \S+", "", line)
    line = re.sub(r"engines/wan[\w.-]+", "engines/wan-tiny-rtx5090", line)
    line = re.sub(r"--model \S+", "--model wan-tiny", line)
    line = re.sub("bench (media|vae)", r"bench \1 --repeats 1", line)  # it says nothing here but that it runs
    return line + " --components dit" if line.startswith("turbotrt export") else line


LINES = list(
    dict.fromkeys(
        tiny(line) for document in DOCUMENTS for line in shell_lines(ROOT / document) if line.startswith("turbotrt ")
    )
)


@pytest.fixture(scope="module")
def folder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a bundle and the checkpoints that the lines name."""
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
def test_a_command_of_the_documents_runs(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # wan-tiny's text encoder and VAE are timed on the CPU too, here on a smaller picture.
    needs_gpu = line.split()[1] in NEED_A_GPU and re.search("bench (media|vae)", line) is None
    if needs_gpu and torch.cuda.is_available():
        pytest.skip("answers differ where there is a GPU")
    if "--embed-plugins" in line and library_path() is None:
        pytest.skip("the plugin library is not built (make native)")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("exporter.bench.media.bench_vae", lambda model, sizes, watch: bench_vae(model, SMALL, watch))
    small = [size[1:] for size in SMALL]
    monkeypatch.setattr(
        "exporter.bench.vae_layers.bench_layers", lambda model, sizes, *rest: bench_layers(model, small, *rest)
    )
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == (2 if needs_gpu else 0), result.output[-2000:] + repr(result.exception)
    if needs_gpu:
        assert re.search(r"GPU|driver|CUDA|VAE", result.stderr, re.IGNORECASE), result.stderr


def test_a_command_runs_by_bash(folder: Path) -> None:
    assert BY_BASH in LINES
    script = BY_BASH.replace("turbotrt", f"{shlex.quote(sys.executable)} -m exporter.cli", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", script]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "All files are as the manifest says." in run.stdout
