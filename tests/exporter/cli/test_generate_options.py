"""turbotrt generate's options: samples, seeds of lines, noise, boundary, share, frames, stills, long prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("tokenizers")
Image = pytest.importorskip("PIL.Image")

from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from runtime.bundle import Manifest
from runtime.media.parts.dit import DitPart
from runtime.media.parts.text import TextPart
from runtime.media.request import Request
from runtime.media.text.embeds_cache import EmbedsCache
from runtime.media.video_pipeline import VideoPipeline
from tests.support.media_bundle import add_media
from tests.support.progress import SilentProgress
from tests.support.random_bundle import make_random_bundle

SMALL = ["--size", "48x32", "--steps", "1", "--backend", "torch"]


pytestmark = pytest.mark.usefixtures("torch_by_entry_point")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "bundle"
    add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]))
    return folder


@dataclass(frozen=True)
class Asked:
    """What reaches the DiT."""

    request: Request
    text: Any
    manifest: Manifest


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What reaches the DiT; nothing is computed: latents are noise by their seed, embeddings hold the prompt."""
    calls: list[Asked] = []

    def embeddings(self: TextPart, prompts: list[str], check: Any) -> Any:
        return {prompt: np.full((2, 4096), len(prompt), np.uint16) for prompt in prompts}

    def latents(self: DitPart, request: Request, text: Any, *_: Any, **__: Any) -> Any:
        calls.append(Asked(request, text, self._opened.manifest))
        return np.full((16, 1, 4, 6), request.seed, np.float32)

    monkeypatch.setattr(TextPart, "embeddings", embeddings)
    monkeypatch.setattr(DitPart, "latents", latents)
    return calls


def run(folder: Path, out: Path, *options: object) -> Any:
    arguments = ["generate", "--bundle", folder, "--out", out, *SMALL, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), "np") as file:
        return dict(file.metadata())


def test_samples_of_prompts_with_seeds_of_their_own(folder: Path, tmp_path: Path, asked: list[Asked]) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufeffa dog --seed 7\na tree\u2028here\n".encode())
    given = ["--prompts", tmp_path / "prompts.txt", "--samples", 2, "--seed", 3, "--frames", 9]
    result = run(folder, tmp_path / "out.safetensors", *given)
    assert result.exit_code == 0, result.output
    assert [one.request.seed for one in asked] == [7, 8, 3, 4]
    assert [int(one.text[0, 0]) for one in asked] == [len("a dog")] * 2 + [len("a tree\u2028here")] * 2
    for number, seed in enumerate((7, 8, 3, 4), 1):
        path = tmp_path / f"out-{number}.safetensors"
        assert metadata(path)["seed"] == str(seed)
        assert load_file(path)["latents"].max() == seed
        assert f"{path}: latents [16, 1, 4, 6], seed {seed}" in result.stdout


def test_samples_of_embeddings(folder: Path, tmp_path: Path, asked: list[Asked]) -> None:
    save_file({"text_embeds": np.ones((3, 4096), np.float32)}, tmp_path / "e.safetensors")
    result = run(folder, tmp_path / "out.safetensors", "--embeds", tmp_path / "e.safetensors", "--samples", 3)
    assert result.exit_code == 0, result.output
    assert [one.request.seed for one in asked] == [0, 1, 2]
    assert [one.text.shape for one in asked] == [(3, 4096)] * 3


def test_frames_are_rounded(folder: Path, tmp_path: Path, asked: list[Asked]) -> None:
    result = run(folder, tmp_path / "out.safetensors", "--prompt", "a cat", "--frames", 8)
    assert result.exit_code == 0, result.output
    assert asked[0].request.frames == 9
    assert "--frames 8 becomes 9: a video has 4n+1 frames." in result.stderr


def test_noise_reaches_the_pipeline(folder: Path, tmp_path: Path, asked: list[Asked]) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 16, 3, 4, 6), dtype=np.float32)
    save_file({"noise": noise}, tmp_path / "theirs.safetensors")
    given = ["--prompt", "a cat", "--noise", tmp_path / "theirs.safetensors"]
    result = run(folder, tmp_path / "out.safetensors", *given, "--frames", 9)
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.asarray(asked[0].request.noise), noise)
    assert metadata(tmp_path / "out.safetensors")["noise"] == "theirs.safetensors"
    for options, words in (
        (["--frames", 13], "[1, 16, 4, 4, 6]"),
        (["--frames", 9, "--steps", 4], "[4, 16, 3, 4, 6]"),
        (["--frames", 9, "--samples", 2], "of one video"),
    ):
        result = run(folder, tmp_path / "none.safetensors", *given, *options)
        assert result.exit_code == 2
        assert words in result.stderr
    assert len(asked) == 1
    assert run(folder, tmp_path / "out.safetensors", *given, "--frames", 9, "--steps", 4, "--ode").exit_code == 0


def test_share_and_boundary(folder: Path, tmp_path: Path, asked: list[Asked]) -> None:
    result = run(folder, tmp_path / "out.safetensors", "--prompt", "a cat", "--topk", "0.25", "--frames", 9)
    assert result.exit_code == 0, result.output
    assert asked[0].manifest.sampler.topk_milli == 250
    assert TORCH.any_topk
    refused: list[tuple[list[object], str]] = [
        (["--topk", "0.15", "--backend", "auto"], "turbotrt export"),
        (["--topk", "nan"], "--topk 'nan' cannot be used"),
        (["--boundary", "0.9"], "one expert"),
        (["--samples", "0"], "samples"),
    ]
    for options, words in refused:
        result = run(folder, tmp_path / "no.safetensors", "--prompt", "a cat", *options)
        assert result.exit_code == 2
        assert words in result.stderr
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat.JPEG"])
def test_a_picture_takes_one_frame(folder: Path, tmp_path: Path, asked: list[Asked], name: str) -> None:
    for frames, given in (("17", []), ("5", ["--frames", "5"])):
        result = run(folder, tmp_path / name, "--prompt", "a cat", *given)
        assert result.exit_code == 2
        assert "is one picture" in result.stderr
        assert f"{frames} frames" in result.stderr
    assert asked == []


def test_one_frame_becomes_a_picture(folder: Path, tmp_path: Path, asked: list[Asked]) -> None:
    """png and jpg of the VAE's own output of the latents."""
    given = ["--prompt", "a cat", "--frames", "1", "--size", "64x64", "--seed", "1"]
    for name in ("cat.png", "cat.jpg"):
        result = run(folder, tmp_path / name, *given)
        assert result.exit_code == 0, result.output
    assert asked[0].request.frames == 1
    with VideoPipeline.load(folder, backend="torch") as pipeline:
        want = pipeline.decode(np.ones((16, 1, 4, 6), np.float32))
    seen = np.asarray(Image.open(tmp_path / "cat.png"))
    assert np.array_equal(seen, want[0])
    photo = Image.open(tmp_path / "cat.jpg")
    assert photo.format == "JPEG"
    assert np.abs(np.asarray(photo).astype(float) - seen).mean() < 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.jpg", "cat.png"]


def test_a_long_prompt_is_cut_aloud(folder: Path) -> None:
    """Said once, of a prompt whose embeddings are kept too: 512 rows tell that there may have been more."""
    report = SilentProgress()
    pipeline = VideoPipeline.load(folder, backend="torch", report=report)
    long, short = "x" * 600, "a cat"
    cache = EmbedsCache(folder / "embeds", pipeline.manifest)
    for prompts in ([long, short, long], [long]):
        report.notes.clear()
        pipeline._parts.text.lengths(prompts)
        assert [note[:32] for note in report.notes] == ["The prompt “" + "x" * 20]
        assert "602 tokens" in report.notes[0]
        assert cache.put(long, np.zeros((512, 4096), np.uint16)) is None
    cache.path(long).unlink()


def test_bytes_that_are_no_text_end_in_one_message(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "cat.safetensors", "--prompt", "caf\udce9")
    assert result.exit_code == 2
    assert "The prompt is no text." in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_escapes_of_names_do_not_reach_the_terminal(folder: Path, tmp_path: Path) -> None:
    """A file's name in a table of ``inspect``, a folder's in a message: what a bundle brings is shown, not obeyed."""
    hostile = tmp_path / "bundle\x1b[2J"
    hostile.mkdir()
    (hostile / "manifest.json").hardlink_to(folder / "manifest.json")
    (hostile / "x\x1b]0;owned\x07").touch()
    for arguments in (["inspect", str(hostile)], ["inspect", str(hostile / "nowhere")]):
        result = CliRunner().invoke(app, arguments)
        assert "\x1b" not in result.output
        assert "\\u001b[2J" in result.output
    assert "\\u001b]0;owned" in CliRunner().invoke(app, ["inspect", str(hostile)]).output
