"""turbotrt generate, from a prompt (and an image) to a video that plays, on the CPU with wan-tiny's components."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")
pytest.importorskip("tokenizers")
Image = pytest.importorskip("PIL.Image")

from dataclasses import replace

from safetensors.numpy import load_file
from typer.testing import CliRunner

from exporter import models
from exporter.cli.app import app
from runtime.media.parts.times import Part, StepParts
from runtime.media.vae.decoder import Vae
from runtime.media.video_pipeline import VideoPipeline
from tests.support.media_bundle import add_media
from tests.support.random_bundle import make_random_bundle

SIZE = ["--size", "48x32", "--frames", "9", "--steps", "1", "--backend", "torch"]


pytestmark = pytest.mark.usefixtures("torch_by_entry_point")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "bundle"
    add_media(folder, make_random_bundle(folder, models.MODELS["wan-tiny"]))
    return folder


@pytest.fixture
def image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a small image-to-video model, which the table of models has for the test's time."""
    model = replace(models.MODELS["wan-tiny"], name="wan-tiny-i2v", in_channels=36)
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, model.name: model})
    folder = tmp_path / "bundle"
    add_media(folder, make_random_bundle(folder, model), model)
    return folder


@pytest.fixture
def experts_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a small image-to-video model of two experts."""
    experts: dict[str, Any] = {"experts": ("high-noise", "low-noise"), "boundary": 0.9, "sigma_max": 200.0}
    model = replace(models.MODELS["wan-tiny"], name="wan-tiny-experts", in_channels=36, **experts)
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, model.name: model})
    folder = tmp_path / "bundle"
    add_media(folder, make_random_bundle(folder, model), model)
    return folder


def run(folder: Path, out: Path, *options: object) -> Any:
    arguments = ["generate", "--bundle", folder, "--out", out, *SIZE, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def frames_of(path: Path) -> Any:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 16
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])


def test_a_prompt_becomes_an_mp4(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "cat.mp4", "--prompt", "A cat on a surfboard")
    assert result.exit_code == 0, result.output
    assert "48x32, 9 frames at 16 per second" in result.stdout
    for part in ("text", "load", "step 1", "VAE", "encode", "total"):
        assert part in result.stdout
    assert re.search(r"^  VAE decode +[0-9.]+ [MG]B  whole$", result.stderr, re.MULTILINE)
    stated = result.stderr.index("Device memory at most, part by part (one at a time):")
    assert stated < result.stderr.index("encode the prompt")  # before anything is loaded
    for part in ("text", "DiT", "VAE decode"):
        assert re.search(rf"^  {part} +[0-9.]+ [MG]B  ", result.stderr, re.MULTILINE)
    for row in result.stdout.splitlines():
        if "│" in row:  # nobody counts the CPU's memory, so that nothing is claimed of it
            assert row.split("│")[4].strip() == "–", row
    seen = frames_of(tmp_path / "cat.mp4")
    assert seen.shape == (9, 32, 48, 3)
    assert seen.std() > 5
    assert [path.name for path in tmp_path.iterdir()] == ["cat.mp4"]


def test_the_video_is_that_of_the_latents(folder: Path, tmp_path: Path) -> None:
    """png frames are the decoder's own output of the latents that the same call gives."""
    given = ["--prompt", "A cat", "--seed", 3]
    assert run(folder, tmp_path / "latents.safetensors", *given).exit_code == 0
    result = run(folder, tmp_path / "frames", *given)
    assert result.exit_code == 0, result.output
    assert "embeddings come from the cache" in result.stderr
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert len(names) == 9
    shown = np.stack([np.asarray(Image.open(tmp_path / "frames" / name)) for name in names])
    latents = load_file(tmp_path / "latents.safetensors")["latents"]
    with VideoPipeline.load(folder, backend="torch") as pipeline:
        want = pipeline.decode(latents)
    assert np.array_equal(shown, want)


def test_a_batch_makes_one_video_for_each_prompt(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\n\na tree\n", encoding="utf-8")
    result = run(folder, tmp_path / "out.mp4", "--prompts", tmp_path / "prompts.txt")
    assert result.exit_code == 0, result.output
    assert all(f"video {number}, step 1" in result.stdout for number in (1, 2))
    first, second = frames_of(tmp_path / "out-1.mp4"), frames_of(tmp_path / "out-2.mp4")
    assert first.shape == second.shape == (9, 32, 48, 3)
    assert not np.array_equal(first, second)


def test_the_switch_has_a_row_of_its_own(experts_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (48, 32), (200, 20, 20)).save(tmp_path / "red.png")
    (tmp_path / "prompts.txt").write_text("a dog\na tree\n", encoding="utf-8")
    given = ["--prompts", tmp_path / "prompts.txt", "--image", tmp_path / "red.png", "--steps", 4, "--vram", "14MB"]
    result = run(experts_folder, tmp_path / "out.safetensors", *given)
    assert result.exit_code == 0, result.output
    assert "take turns in the same slots" in result.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in result.stdout.splitlines() if "│" in line]
    first, back = (f"switch to {expert}-noise (waiting for weights)" for expert in ("low", "high"))
    names = [name for name, *_ in rows if name.startswith("video")]
    assert names == [
        *(f"video 1, {part}" for part in ("load (waiting for weights)", "step 1", "step 2", first, "step 3", "step 4")),
        *(f"video 2, {part}" for part in (back, "step 1", "step 2", first, "step 3", "step 4")),
    ]
    assert all(float(seconds) >= 0 for _, seconds, *_ in rows)
    assert len({planned for name, _, planned, _ in rows if name in names}) == 1


def test_a_switch_takes_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed layers are waited for in every step; rows add up to the time that passed."""
    waited, clock = iter([0.1, 0.2, 0.7, 0.1]), iter([10.0, 11.0, 12.0, 14.0, 15.0])
    monkeypatch.setattr("runtime.media.parts.times.time.perf_counter", lambda: next(clock))
    device = SimpleNamespace(take_peak=lambda: 7)
    pipe: Any = SimpleNamespace(
        take_waited_seconds=lambda: next(waited),
        placement=SimpleNamespace(peak=9),
        runner=SimpleNamespace(device=device),
    )
    parts: list[Part] = []
    rows = StepParts(pipe, parts)
    rows.begin("", 9)
    for index, expert in enumerate(["high", "high", "low", "low"]):
        step: Any = SimpleNamespace(index=index, expert=expert)
        rows.add(step)
    assert [part.name for part in parts] == [
        "step 1",
        "step 2",
        "switch to low (waiting for weights)",
        "step 3",
        "step 4",
    ]
    assert [part.seconds for part in parts] == pytest.approx([1.0, 1.0, 0.5, 1.5, 1.0])
    assert {(part.planned, part.measured) for part in parts} == {(9, 7)}


def test_an_image_becomes_a_video(image_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 90, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    given = ["--prompt", "It waves", "--image", tmp_path / "cat.png"]
    result = run(image_folder, tmp_path / "fixed.mp4", *given)
    assert result.exit_code == 0, result.output
    assert "image" in result.stdout
    assert frames_of(tmp_path / "fixed.mp4").shape == (9, 32, 48, 3)
    result = run(image_folder, tmp_path / "adaptive.mp4", *given, "--image-size", "adaptive")
    assert result.exit_code == 0, result.output
    assert frames_of(tmp_path / "adaptive.mp4").shape == (9, 32, 64, 3)  # √(48·32·90/40) = 58.8, √(48·32·40/90) = 26.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a cat", "--negative", "ugly"], ["negative", "Distilled"]),
        ([], ["one of --prompt, --prompts, --embeds", "none"]),
        (["--prompt", "a cat", "--embeds", "x.safetensors"], ["--prompt, --embeds"]),
        (["--prompt", "a cat", "--crop"], ["--image"]),
        (["--prompt", "  "], ["empty"]),
        (["--prompt", "a cat", "--image", "cat.png"], ["from text alone", "no image"]),
        (["--prompt", "a cat", "--out", "nowhere/cat.mp4"], ["nowhere/cat.mp4 cannot be written", "no folder"]),
        (["--prompt", "a cat", "--out", "nowhere/latents.safetensors"], ["cannot be written", "no folder"]),
        (["--prompt", "a cat", "--out", "/proc/cat.mp4"], ["/proc/cat.mp4 cannot be written"]),
        (["--prompt", "a cat", "--size", "48x40"], ["multiples of 16"]),
        (["--prompt", "a cat", "--seed", "-1"], ["seed cannot be negative"]),
        (["--prompt", "a cat", "--sigma-max", "0"], ["positive number"]),
        (["--prompt", "a cat", "--steps", "9"], ["1 to 4"]),
        (["--embeds", "/"], ["/ cannot be read", "a safetensors file"]),
        (["--prompts", "nowhere.txt"], ["nowhere.txt"]),
        (["--prompt", "a cat", "--out", "cat.avi"], [".mp4", ".avi"]),
    ],
)
def test_mistakes_are_one_message_and_status_2(
    folder: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = run(folder, tmp_path / "cat.mp4", *options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    assert "encode the prompt" not in result.stderr  # told before anything is loaded
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_images_are_looked_at_before_anything_is_loaded(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    for options, word in (
        (["--image", tmp_path / "nowhere.png"], "nowhere.png cannot be read."),
        (["--image", tmp_path / "junk.png"], "cannot be read as an image"),
        ([], "give --image FILE"),
    ):
        result = run(image_folder, tmp_path / "cat.mp4", "--prompt", "a cat", *options)
        assert result.exit_code == 2
        assert word in result.stderr
        assert "Device memory" not in result.stderr


@pytest.mark.parametrize("out", ["cat.mp4", "frames"])
def test_an_interruption_leaves_no_half_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Ctrl-C while chunks are decoded and the first frames are on their way to the file."""
    real, begun = Vae.decode, list[str]()

    def interrupted(self: Any, latents: Any) -> Any:
        for number, frames in enumerate(real(self, latents)):
            if number == 2:
                begun.extend(path.name for path in tmp_path.iterdir())
                raise KeyboardInterrupt
            yield frames

    monkeypatch.setattr(Vae, "decode", interrupted)
    result = run(folder, tmp_path / out, "--prompt", "A cat on a surfboard")
    assert result.exit_code == 130, result.output
    # Frames' own folder is there too, empty: it was claimed before the work.
    assert all(name.endswith(".partial") or name == "frames" == out for name in begun)
    assert begun or out == "cat.mp4"  # H.264 looks ahead: its file begins with the first packet
    assert list(tmp_path.iterdir()) == []
