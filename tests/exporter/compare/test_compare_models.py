"""turbotrt compare on other bundles than the plain one: two experts and an image, one file; and beside the runtime."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

pytest.importorskip("polygraphy")
pytest.importorskip("matplotlib")
pytest.importorskip("onnx_graphsurgeon")

from exporter import models
from exporter.export import export_bundle
from exporter.spec import export_spec
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime import Pipeline
from runtime.bundle import load_manifest, write_manifest
from tests.support.checkpoints import canonical_state_dict, save_safetensors
from tests.support.compared import run, weights_changed
from tests.support.exported import Exported
from tests.support.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("no_gpu")
EXPERTS = ("high-noise", "low-noise")


@pytest.fixture
def image_model(monkeypatch: pytest.MonkeyPatch) -> models.ModelSpec:
    """A small Wan2.2: two experts, of which the second takes over at the second step, and an image's 20 channels."""
    model = replace(models.MODELS["wan-tiny"], name="wan-tiny-i2v", in_channels=36, experts=EXPERTS, boundary=0.95)
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, model.name: model})
    return model


def test_two_experts_and_an_image(image_model: models.ModelSpec, tmp_path: Path) -> None:
    """Both experts run, each step by its own; an error in the second one's weights shows in its step's blocks only."""
    paths = [
        save_safetensors(tmp_path / f"{name}.safetensors", canonical_state_dict(image_model, seed))
        for seed, name in enumerate(EXPERTS)
    ]
    checkpoint = f"{paths[0]},{paths[1]}"
    spec = export_spec(
        model=image_model.name, gpu="h200", checkpoint=checkpoint, out=tmp_path, components="dit", onnx_only=True
    )
    bundle = export_bundle(spec, SilentProgress())
    options: dict[str, Any] = {"steps": 2, "frames": 5, "block_step": 1}
    clean = run(bundle, checkpoint, tmp_path / "clean", report=True, **options)
    assert clean.passed
    assert {row.candidate for row in clean.rows} == {"quantized", "onnx"}
    assert "needs a CUDA GPU" in clean.left_out["tensorrt"]

    low = load_manifest(bundle).weights["low-noise"]
    weights_changed(bundle, lambda tensors: tensors["blocks.0.ffn.2.bias"].add_(1), low)
    second = run(bundle, checkpoint, tmp_path / "second", **options)
    assert {(row.place.rpartition(" ")[2], row.layer) for row in second.offenders if row.level == "op"} == {
        ("ffn.2", 0)
    }
    first = run(bundle, checkpoint, tmp_path / "first", **{**options, "block_step": 0})
    assert not [row for row in first.offenders if row.level in ("op", "block")]

    wrong = save_safetensors(tmp_path / "wrong.safetensors", {"condition": torch.zeros(16, 1, 10, 16)})
    with pytest.raises(UserError, match="makes video from an image"):
        run(bundle, checkpoint, tmp_path / "wrong", condition=wrong, **options)
    image = save_safetensors(tmp_path / "image.safetensors", {"condition": torch.ones(16, 2, 10, 16)})
    other = run(bundle, checkpoint, tmp_path / "image", condition=image, **options, against=("fp32", "onnx"))
    assert not np.array_equal(other.frames["fp32"][0], clean.frames["fp32"][0])


@pytest.mark.parametrize("ode", [False, True])
def test_the_quantized_runner_is_the_runtime(exported: Exported, tmp_path: Path, ode: bool) -> None:
    """The same text and seed through compare and through the runtime's torch backend give the same latents."""
    text = torch.randn(7, 4096, generator=torch.Generator().manual_seed(1))
    embeds = save_safetensors(tmp_path / "text.safetensors", {"text_embeds": text})
    options: dict[str, Any] = {"against": ("fp32", "quantized"), "steps": 3, "seed": 5, "ode": ode, "embeds": embeds}
    found = run(exported.folder, exported.checkpoint, tmp_path / "out", **options)
    with Pipeline.load(exported.folder, backend=TORCH) as pipe:
        latents = pipe(text.numpy(), seed=5, steps=3, ode=ode)
    np.testing.assert_array_equal(np.stack(found.frames["quantized"], 1), latents)


def test_a_one_file_engine_is_left_out(exported: Exported, tmp_path: Path) -> None:
    """Its stage is none of the three, and its files are not read."""
    folder = Path(shutil.copytree(exported.folder, tmp_path / "bundle"))
    manifest = load_manifest(folder)
    whole = msgspec.structs.replace(manifest.stages[1], name="one-file", expert="model", engine="head.engine")
    whole = msgspec.structs.replace(whole, onnx="README.txt")
    write_manifest(folder, msgspec.structs.replace(manifest, stages=(*manifest.stages, whole)))
    found = run(folder, exported.checkpoint, tmp_path / "out", frames=5)
    assert found.passed
    assert "one-file" in found.left_out


def swept(folder: Path, checkpoint: Path, out: Path) -> str | None:
    """Why a sweep without a GPU has no times; its plot is then over the share of key blocks."""
    found = run(folder, checkpoint, out, against=("fp32", "quantized"), frames=5, sweep=(500, 1000), report=True)
    assert found.sweep is not None
    assert [point.seconds for point in found.sweep.points] == [None, None]
    assert str(found.sweep.untimed) in (out / "report.html").read_text()
    return found.sweep.untimed


def test_a_gpu_of_no_table_is_not_estimated_for(exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "bundle"))
    manifest = load_manifest(folder)
    gpu = msgspec.structs.replace(manifest.gpu, name="rtx9090")
    write_manifest(folder, msgspec.structs.replace(manifest, gpu=gpu))
    assert "none named rtx9090" in str(swept(folder, exported.checkpoint, tmp_path / "out"))


def test_bf16_linears_are_not_estimated(exported: Exported, tmp_path: Path) -> None:
    checkpoint = str(exported.checkpoint)
    spec = export_spec(
        model="wan-tiny",
        gpu="h200",
        checkpoint=checkpoint,
        out=tmp_path,
        components="dit",
        onnx_only=True,
        linear="bf16",
    )
    folder = export_bundle(spec, SilentProgress())
    assert "INT8 Linears only" in str(swept(folder, exported.checkpoint, tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 5}, "number of steps"),
        ({"block_step": 1}, "no such step"),
        ({"frames": 6}, "4n\\+1"),
        ({"size": (100, 80)}, "multiples of 16"),
        ({"size": (2048, 2048)}, "outside what this bundle"),
        ({"seed": -1}, "negative"),
        ({"embeds": Path("nowhere.safetensors")}, "cannot be read"),
        ({"condition": Path("nowhere.safetensors")}, "cannot be read"),
        ({"same_blocks": True, "against": ("quantized", "onnx")}, "--same-blocks has nothing to do"),
        ({"sweep": (100,), "against": ("fp32", "onnx")}, "needs a runner whose share"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str, exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        run(exported.folder, exported.checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_is_no_bundle_or_no_checkpoint(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="manifest"):
        run(tmp_path, exported.checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match="nowhere"):
        run(exported.folder, tmp_path / "nowhere.safetensors", tmp_path / "out")
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(UserError, match="taken"):
        run(exported.folder, exported.checkpoint, taken)
