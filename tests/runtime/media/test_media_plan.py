"""What text encoder, DiT and VAE will need of memory, before anything is loaded, and what the device counted after."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from exporter.torch_backend.device import TorchDevice
from plugins.errors import UserError
from runtime.backends import cuda_device
from runtime.backends.tensorrt import TENSORRT
from runtime.bundle import Manifest, load_manifest, write_manifest
from runtime.byte_sizes import gigabytes
from runtime.layout import weight_layout
from runtime.media.parts.plan import DECODE, DIT, TEXT, TINY, Sizes, bundle_parts, plan_parts, planned
from runtime.media.vae.plan import plan_vae
from runtime.pipeline import Pipeline
from tests.support.media_bundle import add_media
from tests.support.random_bundle import make_random_bundle

FIGURE = 2_000_000  # what the builder is said to have stated for every stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "bundle"
    add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]))
    return folder


@pytest.fixture(scope="module")
def engines(folder: Path) -> Manifest:
    """The manifest as it is with engines."""

    def built(stage: Any) -> Any:
        return msgspec.structs.replace(stage, engine=stage.onnx, activation_bytes=FIGURE)

    manifest = load_manifest(folder)
    return msgspec.structs.replace(manifest, stages=tuple(map(built, manifest.stages)))


def test_engines_figures_are_scaled_to_the_size(engines: Manifest) -> None:
    activations = TENSORRT.activations(engines)
    assert activations("decode_next", {"H": 16, "W": 16}) == FIGURE  # the profile's maximum
    assert activations("decode_next", {"H": 8, "W": 4}) == FIGURE // 8 + 2**20
    assert activations("text_block", {"L": 64}) == FIGURE // 8 + 2**20


@pytest.mark.parametrize("kind", [TENSORRT, TORCH], ids=lambda kind: kind.name)
def test_every_part_is_planned(engines: Manifest, kind: Any) -> None:
    assert bundle_parts(engines) == (TEXT, DIT, DECODE, TINY)
    figures, small = planned(kind, engines), Sizes((96, 64), 9, lengths=(20,))
    made = plan_parts(engines, figures, bundle_parts(engines), small)
    peaks = {need.name: need.passing for need in made.residency.needs}
    assert made.peak == max(map(made.residency.peak, peaks))
    assert peaks[DIT] == made.dit.peak
    longer = plan_parts(engines, figures, (TEXT, DIT), replace(small, lengths=(200, 200)))
    assert longer.residency.needs[0].passing > peaks[TEXT]
    larger = plan_parts(engines, figures, (DIT, DECODE), Sizes((128, 80), 9))
    assert larger.residency.needs[1].passing > peaks[DECODE]


def test_a_budget_below_the_whole_picture_means_tiles_or_a_refusal(engines: Manifest) -> None:
    """Engines that take more than wan-tiny's, so that it is the budget that decides."""
    larger = tuple(
        msgspec.structs.replace(stage, profile=msgspec.structs.replace(stage.profile, max=64))
        for stage in engines.stages_of("vae")
    )
    manifest = msgspec.structs.replace(engines, stages=(*engines.stages_of("dit"), *larger))

    def planned(limit: int | None) -> Any:
        return plan_vae(manifest, TENSORRT.activations(manifest), "decode", 24, 48, limit)

    whole = planned(None)
    assert whole.how == "whole"
    assert planned(whole.peak) == whole
    tiled = planned(whole.peak * 7 // 10)
    assert tiled.peak <= whole.peak * 7 // 10
    assert len(tiled.tiles) > 1
    assert "tiles of" in tiled.how
    with pytest.raises(UserError, match="cannot decode 384x192"):
        planned(whole.peak // 50)


def test_plan_shows_every_part(engines: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, engines)
    arguments = ["plan", "--bundle", str(tmp_path), "--size", "96x64", "--frames", "9"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    for name in (TEXT, DIT, DECODE, TINY):
        assert re.search(rf"^  {name} +[0-9.]+ [MG]B  ", said.stdout, re.MULTILINE)
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [part["part"] for part in found["parts"]] == [TEXT, DIT, DECODE, TINY]
    beside = found["parts"][1]["peak_bytes"] - found["peak_bytes"]  # the decoder's weights come while the DiT runs
    assert beside == sum(weight_layout(engines.stage(f"decode_{half}")).nbytes for half in ("latent", "next"))
    assert {DIT, DECODE, TINY} <= set(found["resident"]["stay"])


def test_torch_plans_the_device_that_runs(folder: Path, tmp_path: Path) -> None:
    """The bundle is for another GPU, or for none that is here: stated before, planned and loaded are one figure."""
    asked: dict[str, Any] = {"size": (48, 32), "frames": 9, "steps": 2}
    with Pipeline.load(folder, backend=TORCH, **asked) as pipe:
        loaded = pipe.placement.peak
    manifest = load_manifest(folder)
    made = plan_parts(manifest, planned(TORCH, manifest), (DIT,), Sizes(**asked))
    assert (made.peak, made.dit.peak) == (loaded, loaded)
    given = ["--size", "48x32", "--frames", "9", "--steps", "2", "--backend", "torch", "--bundle", str(folder)]
    told = CliRunner().invoke(app, ["generate", *given, "--prompt", "a dog on land", "--out", str(tmp_path / "a.mp4")])
    assert told.exit_code == 0, told.output
    beside = plan_parts(manifest, planned(TORCH, manifest), (DIT, DECODE), Sizes(**asked)).residency.peak(DIT)
    assert re.search(rf"^  DiT +{gigabytes(beside)}  ", told.stderr, re.MULTILINE)
    said = CliRunner().invoke(app, ["plan", *given, "--json"])
    assert json.loads(said.stdout)["peak_bytes"] == loaded


def test_the_table_shows_what_the_device_counted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has the peak since the row before: text, the steps, VAE; the total has the largest."""
    counted = iter([11 * 10**6, 22 * 10**6, 33 * 10**6, 44 * 10**6])
    monkeypatch.setattr(TorchDevice, "take_peak", lambda self: next(counted))
    given = ["--size", "48x32", "--frames", "9", "--steps", "2", "--backend", "torch", "--prompt", "a cat at sea"]
    result = CliRunner().invoke(app, ["generate", "--bundle", str(folder), "--out", str(tmp_path / "a.mp4"), *given])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in result.stdout.splitlines() if "│" in line]
    seen = [(name, peak) for name, _, _, peak in rows]
    assert seen == [
        ("load the backend", "–"),
        ("plan", "–"),
        ("text", "11.0 MB"),
        ("load (waiting for weights)", "22.0 MB"),
        ("step 1", "22.0 MB"),
        ("step 2", "33.0 MB"),
        ("VAE decode", "44.0 MB"),
        ("encode frames (behind the VAE)", "–"),
        ("total", "44.0 MB"),
    ]
    assert all(float(seconds) >= 0 for _, seconds, _, _ in rows)
    planned = {name: figure for name, _, figure, _ in rows}
    assert planned["step 1"] == planned["step 2"] != planned["text"]


def test_the_cuda_device_counts_what_it_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(cuMemAlloc=lambda nbytes: (0, 4096), cuMemFree=lambda address: (0,))
    monkeypatch.setattr(cuda_device, "driver", lambda: driver)
    device = object.__new__(cuda_device.CudaDevice)  # without a GPU there is no other way to one
    device._live = device._peak = 0
    first, second = device.allocate(100), device.allocate(20)
    first.free()
    first.free()  # a second time is nothing
    assert device.take_peak() == 120
    assert device.take_peak() == 20
    second.free()
    assert (device.take_peak(), device.take_peak()) == (20, 0)
