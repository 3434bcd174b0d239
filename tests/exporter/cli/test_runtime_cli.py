"""turbotrt generate, plan and bench on a bundle of random weights, through the torch backend on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.cli.options import parse_size
from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime import Pipeline
from runtime.bundle import write_manifest
from tests.support.exported import Exported
from tests.support.random_bundle import make_random_bundle

SIZE = ["--size", "48x32", "--frames", "9"]
IMAGE = replace(MODELS["wan-tiny"], name="tiny-i2v", in_channels=36, layers=4)


pytestmark = pytest.mark.usefixtures("torch_by_entry_point")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and beside it embeddings in bf16 and conditioning latents."""
    made = tmp_path_factory.mktemp("cli")
    make_random_bundle(made / "bundle", IMAGE)
    generator = torch.Generator().manual_seed(0)
    save_torch({"text_embeds": torch.randn(7, 4096, generator=generator).bfloat16()}, made / "prompt.safetensors")
    save_torch({"condition": torch.randn(16, 3, 4, 6, generator=generator)}, made / "image.safetensors")
    return made


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def generate(folder: Path, out: Path, *options: object) -> Any:
    given = ["--bundle", folder / "bundle", "--embeds", folder / "prompt.safetensors", "--out", out]
    return run("generate", *given, "--condition", folder / "image.safetensors", "--backend", "torch", *SIZE, *options)


def test_generate_writes_what_the_pipeline_gives(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents.safetensors"
    result = generate(folder, out, "--seed", 5, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "[16, 3, 4, 6]" in result.stdout
    bits = load_torch(folder / "prompt.safetensors")["text_embeds"].view(torch.int16).numpy().view(np.uint16)
    condition = load_file(folder / "image.safetensors")["condition"]
    with Pipeline.load(folder / "bundle", backend=TORCH, size=(48, 32), frames=9) as pipe:
        want = pipe(bits, seed=5, steps=2, size=(48, 32), frames=9, condition=condition)
    np.testing.assert_array_equal(load_file(out)["latents"], want)
    assert [path.name for path in tmp_path.iterdir()] == ["latents.safetensors"]


def test_a_budget_changes_no_byte_and_the_plan_is_shown(folder: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert generate(folder, whole, "--steps", 1, "--ode").exit_code == 0
    with Pipeline.load(folder / "bundle", backend=TORCH, size=(48, 32), frames=9) as pipe:
        smallest = pipe.placement.smallest
    result = generate(folder, part, "--steps", 1, "--ode", "--vram", smallest)
    assert result.exit_code == 0, result.output
    assert "0 of 4 layers stay; 4 stream through 2 slots" in result.stderr
    assert whole.read_bytes() == part.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vram", "1MB"], ["too little", "at least"]),
        (["--vram", "much"], ["12GB"]),
        (["--steps", "5"], ["1 to 4"]),
        (["--size", "48"], ["WIDTHxHEIGHT"]),
        (["--backend", "onnx"], ["auto, tensorrt, torch"]),
        (["--backend", "auto"], ["--onnx-only", "--backend torch"]),
        (["--embeds", "nowhere.safetensors"], ["nowhere.safetensors", "No such file"]),
        (["--out", "latents.mp4"], ["--vae", ".safetensors"]),
        (["--condition", "prompt.safetensors"], ["condition"]),
    ],
)
def test_mistakes_are_one_message_and_status_2(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "latents.safetensors"
    result = generate(folder, out, *options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_plan_of_engines_scales_the_builders_figure(folder: Path, tmp_path: Path) -> None:
    from runtime.bundle import load_manifest

    manifest = load_manifest(folder / "bundle")
    stages = tuple(msgspec.structs.replace(s, engine=s.onnx, activation_bytes=40_960_000) for s in manifest.stages)
    write_manifest(tmp_path, msgspec.structs.replace(manifest, stages=stages, weights={}))
    result = run("plan", "--bundle", tmp_path, *SIZE, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["tokens"] == 18
    assert found["streamed"] == 0
    assert found["activation_bytes"]["block"] == 180_000 + 16 * 512 * 256
    text = run("plan", "--bundle", tmp_path, *SIZE, "--vram", found["smallest_bytes"]).stdout
    assert "4 stream through 2 slots" in text
    assert "the builder's own figure" in text
    assert "has not been measured" in text
    refused = run("plan", "--bundle", tmp_path, *SIZE, "--vram", found["smallest_bytes"] - 1)
    assert refused.exit_code == 2
    assert "at least" in refused.stderr


def test_plan_of_a_real_bundle(exported: Exported) -> None:
    found = json.loads(run("plan", "--bundle", exported.folder, "--json").stdout)
    assert found["experts"] == ["model"]
    running = found["io_bytes"] + found["overhead_bytes"] + max(found["activation_bytes"].values())
    assert found["peak_bytes"] == found["weights_bytes"] + running


def test_plan_of_torch_needs_no_gpu(folder: Path) -> None:
    found = json.loads(run("plan", "--bundle", folder / "bundle", "--backend", "torch", *SIZE, "--json").stdout)
    assert found["activation_bytes"]["block"] > 0
    assert "meta tensors" in found["source"]


def test_bench_times_every_stage(folder: Path) -> None:
    options = ["--bundle", folder / "bundle", "--backend", "torch", *SIZE, "--steps", 2, "--repeats", 2]
    result = run("bench", *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = {row["stage"]: row for row in found["stages"]}
    assert {stage: row["runs"] for stage, row in rows.items()} == {"embed": 2, "block": 8, "head": 2}
    assert len(found["generation_seconds"]) == 2
    assert len(found["step_seconds"]) == 2
    assert sum(found["step_seconds"]) == pytest.approx(sum(row["seconds"] for row in rows.values()))
    assert all(row["mean_ms"] * row["runs"] == pytest.approx(1e3 * row["seconds"]) for row in rows.values())
    table = run("bench", *options)
    assert "tiny-i2v on cpu, L = 18, 2 steps" in table.stdout
    assert run("bench").exit_code == 2


@pytest.mark.parametrize(
    ("text", "size"), [("832x480", (832, 480)), ("48×32", (48, 32)), ("832*480", (832, 480)), (None, None)]
)
def test_sizes(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["832", "832**480", "x", "832x480x81", "-16x16", "9" * 5000 + "x480"])
def test_other_sizes(text: str) -> None:
    with pytest.raises(UserError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_embeddings_without_the_tensor_are_told(folder: Path, tmp_path: Path) -> None:
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    result = generate(folder, tmp_path / "out.safetensors", "--embeds", tmp_path / "x.safetensors")
    assert result.exit_code == 2
    assert "text_embeds" in result.stderr
    assert "other" in result.stderr
