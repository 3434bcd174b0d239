"""turbotrt compare on videos: the final latents through the bundle's VAE, frame by frame, and when they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("polygraphy")
pytest.importorskip("matplotlib")

from exporter.compare.spec import CompareSpec
from exporter.compare.video import why_no_video
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime.bundle import load_manifest
from runtime.media.video_pipeline import VideoPipeline
from tests.support.compared import polygraphy, run, weights_changed
from tests.support.exported import Exported
from tests.support.media_bundle import add_media

pytestmark = pytest.mark.usefixtures("no_gpu")
SMALL: dict[str, Any] = {"against": ("fp32", "quantized"), "size": (64, 48)}


@pytest.fixture(scope="module")
def with_vae(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a VAE of random weights."""
    folder = Path(shutil.copytree(exported.folder, tmp_path_factory.mktemp("vae") / "bundle"))
    add_media(folder, load_manifest(folder))
    return folder


def test_videos_are_decoded_by_one_vae(with_vae: Path, exported: Exported, tmp_path: Path) -> None:
    """PSNR and SSIM of every frame are those of the frames that the runtime's VAE makes of the recorded latents."""
    found = run(with_vae, exported.checkpoint, tmp_path / "out", frames=9, report=True, **SMALL)
    assert found.passed
    assert "video" not in found.left_out
    rows = [row for row in found.rows if row.level == "video"]
    assert [row.place for row in rows] == [f"frame {index:03d}" for index in range(9)]
    latents = [np.stack(found.frames[name], 1) for name in ("fp32", "quantized")]
    with VideoPipeline.load(with_vae, backend=TORCH) as pipeline:
        want, got = map(pipeline.decode, latents)
    for row, a, b in zip(rows, got, want, strict=True):
        error = np.square(a.astype(np.float64) - b).mean()
        assert row.metrics["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error))
        assert 0.9 < row.metrics["ssim"] < 1
    assert want.std() > 10, "a picture, not one colour"
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Video</h2>" in text
    inspected = polygraphy("inspect", "data", str(tmp_path / "out" / "video.json"))
    assert "frame 008" in inspected


def test_videos_of_the_tiny_decoder(with_vae: Path, exported: Exported, tmp_path: Path) -> None:
    """Its frames of the recorded latents; a bundle without it says so."""
    tiny: dict[str, Any] = {"vae_decoder": "tiny", "frames": 5, **SMALL}
    found = run(with_vae, exported.checkpoint, tmp_path / "out", **tiny)
    assert len([row for row in found.rows if row.level == "video"]) == 5
    with VideoPipeline.load(with_vae, backend=TORCH) as pipeline:
        want = pipeline.decode(np.stack(found.frames["fp32"], 1), "tiny")
    assert np.array_equal(torch.stack(found.video["fp32"]).numpy(), want)
    without: Any = SimpleNamespace(manifest=load_manifest(exported.folder))
    why = why_no_video(CompareSpec(exported.folder, None, vae_decoder="tiny"), without)
    assert why is not None
    assert why.startswith("needs the tiny decoder, and the bundle holds no weights of one (export again with ")


def test_a_bad_video_is_over_its_bound(with_vae: Path, exported: Exported, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(with_vae, tmp_path / "bundle"))
    weights_changed(copied, lambda tensors: tensors["head.head.weight"].mul_(-1))
    found = run(copied, exported.checkpoint, tmp_path / "out", frames=5, **SMALL)
    over = [row for row in found.offenders if row.level == "video"]
    assert [row.place for row in sorted(over, key=lambda row: row.place)] == [f"frame {i:03d}" for i in range(5)]


def test_latents_that_are_not_finite_give_no_video(with_vae: Path, exported: Exported, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(with_vae, tmp_path / "bundle"))
    weights_changed(copied, lambda tensors: tensors["head.head.bias"].fill_(torch.nan))
    found = run(copied, exported.checkpoint, tmp_path / "out", frames=5, **SMALL)
    assert not found.passed
    assert "quantized gives no video: its latents are not finite." in found.notes
    assert not [row for row in found.rows if row.level == "video"]
    assert list(found.video) == ["fp32"]


def test_when_videos_are_left_out(
    with_vae: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"frames": 5, **SMALL}
    none = run(exported.folder, exported.checkpoint, tmp_path / "none", **options)
    assert "the bundle holds no weights of one" in none.left_out["video"]
    with pytest.raises(UserError, match="--video needs the VAE"):
        run(exported.folder, exported.checkpoint, tmp_path / "asked", video=True, **options)
    off = run(with_vae, exported.checkpoint, tmp_path / "off", video=False, **options)
    assert "--no-video" in off.left_out["video"]
    monkeypatch.setattr("exporter.compare.video.CPU_OPERATIONS", 1e6)
    large = run(with_vae, exported.checkpoint, tmp_path / "large", **options)
    assert "--video asks" in large.left_out["video"]
    assert run(with_vae, exported.checkpoint, tmp_path / "on", video=True, **options).video
