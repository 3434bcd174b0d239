"""turbotrt generate with the tiny decoder, previews, codecs and rates, on the CPU with wan-tiny's components."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

av = pytest.importorskip("av")
pytest.importorskip("tokenizers")
Image = pytest.importorskip("PIL.Image")

from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime.bundle import load_manifest, write_manifest
from runtime.media.parts.plan import DECODE, DIT, TINY
from runtime.media.video_pipeline import Cancelled, VideoPipeline
from runtime.sampler import Step
from runtime.versions import own_version
from tests.support.media_bundle import add_media
from tests.support.random_bundle import make_random_bundle

SIZE: dict[str, Any] = {"size": (48, 32), "frames": 9, "steps": 2}

pytestmark = pytest.mark.usefixtures("torch_by_entry_point")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]))
    return folder


def run(folder: Path, out: Path, *options: object) -> Any:
    given = ["--size", "48x32", "--frames", "9", "--steps", "2", "--backend", "torch", "--prompt", "A cat"]
    return CliRunner().invoke(
        app, [str(one) for one in ("generate", "--bundle", folder, "--out", out, *given, *options)]
    )


def test_a_video_by_the_tiny_decoder_with_previews(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "a.webm", "--vae-decoder", "tiny", "--preview", tmp_path / "live.gif", "--fps", 8)
    assert result.exit_code == 0, result.output
    assert "48x32, 9 frames at 8 per second" in result.stdout
    assert re.search(r"^  DiT +[0-9.]+ [MG]B  .*previews beside it", result.stderr, re.MULTILINE)
    assert re.search(rf"^  {TINY} +[0-9.]+ [MG]B  ", result.stderr, re.MULTILINE)
    assert "VAE decode" not in result.stderr
    assert "previews (between steps)" in result.stdout
    with av.open(str(tmp_path / "a.webm")) as file:
        assert file.streams.video[0].average_rate == 8
        assert sum(1 for _ in file.decode(video=0)) == 9
        facts = json.loads({key.lower(): value for key, value in file.metadata.items()}["comment"])
    assert (facts["prompt"], facts["seed"], facts["decoder"], facts["steps"]) == ("A cat", "0", "tiny", "2")
    assert f"turbotrt {own_version()}" in facts["versions"]
    with Image.open(tmp_path / "live.gif") as image:
        assert (image.n_frames, image.size) == (9, (48, 32))


def test_decoders_and_previews_change_nothing_else(folder: Path, tmp_path: Path) -> None:
    """Latents are the same bytes; frames are those of each decoder; the last preview is the video itself."""
    with VideoPipeline.load(folder, backend=TORCH) as video:
        plain = video("A cat", **SIZE)
        tiny = video("A cat", decoder="tiny", preview=tmp_path / "live.png", **SIZE)
        assert np.array_equal(plain.latents, tiny.latents)
        assert plain.frames is not None
        assert tiny.frames is not None
        assert np.array_equal(plain.frames, video.decode(plain.latents))
        assert np.array_equal(tiny.frames, video.decode(plain.latents, "tiny"))
        assert not np.array_equal(plain.frames, tiny.frames)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "live.png")), tiny.frames[4])


def test_a_preview_is_there_after_every_step_and_after_a_cancelled_video(folder: Path, tmp_path: Path) -> None:
    path, seen = tmp_path / "live.mp4", []

    def after(step: Step, _: object) -> None:
        seen.append(path.exists() and path.read_bytes())

    with VideoPipeline.load(folder, backend=TORCH) as video:
        with pytest.raises(Cancelled):
            video("A cat", preview=path, on_step=after, cancelled=lambda: len(seen) == 2, **SIZE)
        assert seen[0] is False
        with av.open(str(path)) as file:  # whole
            assert sum(1 for _ in file.decode(video=0)) == 9
        assert video("A cat", **SIZE).frames is not None


def test_previews_are_within_the_plan(folder: Path, tmp_path: Path) -> None:
    """A budget that the DiT alone fits is less for the DiT with previews; one of nothing more than that is refused."""
    with VideoPipeline.load(folder, backend=TORCH) as video:
        video("A cat", **SIZE)
        alone = {part.name: part.planned for part in video.times}
        video("A cat", preview=tmp_path / "live.png", **SIZE)
        beside = {part.name: part.planned for part in video.times}
    assert (beside["step 2"] or 0) > (alone["step 2"] or 0)
    with VideoPipeline.load(folder, backend=TORCH, vram=alone["step 2"]) as video:
        assert video("A cat", out=tmp_path / "a.safetensors", **SIZE).latents_alone
        small = tmp_path / "b.safetensors"
        assert video("A cat", out=small, preview=tmp_path / "live.png", **SIZE).latents_alone
    assert (tmp_path / "a.safetensors").read_bytes() == small.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder": "tiny"}, "has no tiny decoder's weights(.|\n)*--vae-decoder tiny --tiny-vae PATH_OR_HF_ID"),
        ({"preview": Path("live.mp4")}, "has no tiny decoder's weights"),
    ],
)
def test_a_bundle_without_the_tiny_decoder_says_so(
    folder: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    manifest = load_manifest(folder)
    stages = tuple(stage for stage in manifest.stages if stage.component != "tiny")
    weights = {name: file for name, file in manifest.media_weights.items() if name != "tiny"}
    write_manifest(tmp_path, msgspec.structs.replace(manifest, stages=stages, media_weights=weights))
    with VideoPipeline.load(tmp_path, backend=TORCH) as video, pytest.raises(UserError, match=words):
        video("A cat", **options, **SIZE)


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("a.mp4", ["--vae-decoder", "small"], "--vae-decoder 'small' is not known"),
        ("a.webm", ["--codec", "h264"], "holds no h264"),
        ("a.mp4", ["--codec", "hevc"], "hevc video cannot be so small"),
        ("a.mp4", ["--codec", "x"], "--codec 'x' is not known"),
        ("a.gif", ["--quality", "50"], "written by no video codec"),
        ("a.mp4", ["--quality", "0"], "quality cannot be used"),
        ("a.safetensors", ["--fps", "12"], "has no frame rate"),
        ("a.mp4", ["--preview", "live.txt"], "names no kind of preview"),
        ("a.mp4", ["--preview", "no/such/live.mp4"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(
    folder: Path, tmp_path: Path, out: str, options: list[str], words: str
) -> None:
    result = run(folder, tmp_path / out, *options)
    assert result.exit_code == 2 or isinstance(result.exception, UserError), result.output
    assert words in str(result.exception) + result.output
    assert "encode the prompt" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_batch_has_a_preview_each(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "a.mp4", "--samples", 2, "--preview", tmp_path / "live.png", "--codec", "av1")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.mp4", "a-2.mp4", "live-1.png", "live-2.png"]


def test_a_bundles_plan_has_both_decoders(folder: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "--bundle", str(folder), "--backend", "torch", "--size", "48x32"])
    assert result.exit_code == 0, result.output
    for name in (DIT, DECODE, TINY):
        assert re.search(rf"^  {name} +[0-9.]+ [MG]B  ", result.stdout, re.MULTILINE)
