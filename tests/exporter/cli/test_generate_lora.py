"""generate --lora: a bundle's weights are swapped for ones that hold it, packed once, kept up to a limit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from exporter import models
from exporter.cli.app import app
from exporter.loras import LoraArguments
from exporter.packing.lora_cache import bundle_with, weights_with
from plugins.errors import UserError
from runtime.bundle import load_manifest, verify_file
from runtime.tensor_files import write_tensors
from tests.support import loras
from tests.support.checkpoints import canonical_state_dict
from tests.support.progress import SilentProgress
from tests.support.random_bundle import make_random_bundle

TINY = models.MODELS["wan-tiny"]
SMALL = ("--size", "48x32", "--frames", "9", "--steps", "1", "--backend", "torch")

pytestmark = pytest.mark.usefixtures("torch_by_entry_point")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURBOTRT_CACHE_DIR", str(tmp_path / "cache"))
    make_random_bundle(tmp_path / "bundle", TINY)
    write_tensors(tmp_path / "text.safetensors", {"text_embeds": np.ones((4, 4096), np.float32)}, {})
    return tmp_path / "bundle"


@pytest.fixture
def lora(folder: Path) -> Path:
    state = canonical_state_dict(TINY)
    return loras.write(folder.parent / "a.safetensors", loras.kohya(loras.Parts(state, rank=4, alpha=8.0)))


def latents(folder: Path, *options: object) -> Any:
    out = folder.parent / "latents.safetensors"
    text = folder.parent / "text.safetensors"
    arguments = ["generate", "--bundle", folder, "--embeds", text, "--out", out, *SMALL, *options]
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.output
    return load_file(out)["latents"], ran.output


def cached(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "loras").glob("*.safetensors"))


def test_a_lora_changes_the_video_and_the_bundle_stays(folder: Path, lora: Path) -> None:
    """Strength 0 is the bundle's own, to INT8's second rounding; the packed file is made once."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    own, _ = latents(folder)
    nothing, _ = latents(folder, "--lora", f"{lora}:0")
    much, output = latents(folder, "--lora", lora)
    assert "add a.safetensors:1 to weights-model.safetensors" in output
    assert np.abs(nothing - own).max() < 0.1 * np.abs(much - own).max()
    again, output = latents(folder, "--lora", lora)
    assert "add a.safetensors" not in output
    assert np.array_equal(again, much)
    assert len(cached(folder)) == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_swapped_bundle_gives_the_same_latents_as_one_that_was_packed_so(folder: Path, lora: Path) -> None:
    swapped, _ = latents(folder, "--lora", f"{lora}:0.5")
    (file,) = cached(folder)
    packed = folder.parent / "packed"
    make_random_bundle(packed, TINY)
    shutil.copyfile(file, packed / "weights-model.safetensors")
    assert np.array_equal(latents(packed, "--verify", "never")[0], swapped)


def test_a_damaged_file_of_the_cache_is_found(folder: Path, lora: Path) -> None:
    latents(folder, "--lora", lora)
    (file,) = cached(folder)
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    arguments = ["--embeds", folder.parent / "text.safetensors", "--lora", lora, *SMALL]
    command = ["generate", "--bundle", folder, "--out", folder.parent / "x.safetensors", *arguments]
    ran = CliRunner().invoke(app, [str(argument) for argument in command])
    assert ran.exit_code == 2
    assert "A file is damaged" in ran.output
    file.write_bytes(data[:-9])  # of another size: nothing that is known
    assert latents(folder, "--lora", lora)[0].shape


def test_what_was_used_longest_ago_goes_first(folder: Path, lora: Path) -> None:
    report, manifest = SilentProgress(), load_manifest(folder)
    size = (folder / "weights-model.safetensors").stat().st_size

    def use(strength: str, limit: int) -> Path:
        chosen = LoraArguments((f"{lora}:{strength}",)).of(TINY)
        return weights_with(folder, manifest, chosen, report, limit=limit)["model"].path

    first, second = use("1", 3 * size), use("2", 3 * size)
    use("1", 3 * size)  # again: now the second is the older one
    third = use("3", int(2.5 * size))
    assert cached(folder) == sorted([first, third])
    assert not second.with_suffix(".json").exists()
    alone = use("4", 1)
    assert cached(folder) == [alone]  # what runs is never removed
    assert any("removed from the cache of LoRAs" in note for note in report.notes)


def test_one_expert_is_changed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOTRT_CACHE_DIR", str(tmp_path / "cache"))
    model = replace(TINY, name="wan-tiny-experts", experts=("high-noise", "low-noise"), boundary=0.9)
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, model.name: model})
    folder = tmp_path / "bundle"
    manifest = make_random_bundle(folder, model)
    file = loras.write(tmp_path / "a.safetensors", {"blocks.0.modulation.diff": np_zero(model.dim)})
    chosen = LoraArguments(low=(str(file),)).of(model)
    with bundle_with(folder, chosen, SilentProgress()) as view:
        used = load_manifest(view)
        assert used.weights["high-noise"] == manifest.weights["high-noise"]
        low = view / used.weights["low-noise"]
        assert low.resolve() == cached(folder)[0]
        assert verify_file(view, low.name, used.files[low.name]) is None
    assert not view.exists()


def np_zero(dim: int) -> Any:
    import torch

    return torch.zeros(1, 6, dim)


def test_a_bundle_without_weights_says_so(folder: Path, lora: Path) -> None:
    import msgspec

    manifest = msgspec.structs.replace(load_manifest(folder), weights={})
    with pytest.raises(UserError, match="The bundle has no weights yet"):
        weights_with(folder, manifest, LoraArguments((str(lora),)).of(TINY), SilentProgress(), limit=1)
