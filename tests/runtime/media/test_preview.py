"""Previews: the steps' clean latents, small, in a file that is replaced whole; and what a step's clean latents are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

from plugins.errors import UserError
from runtime.media.files.encoders import Encoding
from runtime.media.preview import Preview
from runtime.numerics import Array, times, update
from runtime.sampler import Noise, Step, estimate, sample

SIZE = (1040, 64)  # a quarter is within the largest side


def steps(count: int, *, ode: bool = False) -> tuple[Step, ...]:
    at = times(count, 80.0)
    return tuple(Step(i, at[i], at[i + 1], "model", update(at[i], at[i + 1], ode=ode)) for i in range(count))


def decoded(latents: Array) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames whose brightness is their number and the latents' own."""
    count = 4 * latents.shape[1] - 3
    frames = np.zeros((count, SIZE[1], SIZE[0], 3), np.uint8)
    frames += (10 * np.arange(count) + int(latents[0, 0, 0, 0])).astype(np.uint8)[:, None, None, None]
    yield from (frames[:1], frames[1:])


def latents(brightness: int) -> Array:
    return np.full((16, 3, 8, 130), brightness, np.float32)


@pytest.mark.parametrize("name", ["live.mp4", "live.gif", "live.webm"])
def test_a_moving_preview_is_replaced_step_by_step(tmp_path: Path, name: str) -> None:
    path, first = tmp_path / name, steps(2)
    with Preview(path, SIZE, 16, Encoding(fps=24, facts={"seed": "1"}), decoded) as preview:
        assert not path.exists()
        preview(first[0], latents(0))
        preview._wait()
        before = path.read_bytes()
        preview(first[1], latents(100))
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]
    if name == "live.gif":
        with Image.open(path) as image:
            assert (image.n_frames, image.size) == (9, (260, 16))
        return
    with av.open(str(path)) as file:
        seen = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert '"step": "2"' in {key.lower(): value for key, value in file.metadata.items()}["comment"]
    assert (len(seen), seen[0].shape) == (9, (16, 260, 3))
    assert abs(float(seen[-1].mean()) - 180) < 3


def test_a_still_preview_is_the_middle_frame(tmp_path: Path) -> None:
    with Preview(tmp_path / "live.png", SIZE, 16, Encoding(fps=24), decoded) as preview:
        preview(steps(1)[0], latents(3))
    assert np.asarray(Image.open(tmp_path / "live.png")).mean() == 43


def test_names_and_places_are_checked_at_once(tmp_path: Path) -> None:
    for name in ("live", "live.safetensors", "live.mkv"):
        with pytest.raises(UserError, match="names no kind of preview"):
            Preview(tmp_path / name, SIZE, 16, Encoding(fps=24), decoded)
    with pytest.raises(UserError, match="cannot be written"):
        Preview(tmp_path / "no" / "live.mp4", SIZE, 16, Encoding(fps=24), decoded)


def test_a_file_that_cannot_be_written_ends_the_video(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()

    def show() -> None:
        with Preview(folder / "live.png", SIZE, 16, Encoding(fps=24), decoded) as preview:
            folder.rmdir()
            preview(steps(1)[0], latents(3))

    with pytest.raises(UserError, match="cannot be written"):
        show()


@pytest.mark.parametrize("ode", [False, True])
def test_a_steps_clean_tokens_are_those_it_goes_towards(ode: bool) -> None:
    """A model whose v always points from the same clean tokens: every step's estimate is these; the last is the end."""
    generator = np.random.default_rng(0)
    clean = generator.standard_normal((6, 64), dtype=np.float32)
    found: list[Array] = []

    def forward(x: Array, step: Step, noise: Array) -> Array:
        v = (x - clean) / np.float32(step.t)
        a, b, c = map(np.float32, (step.update.a, step.update.b, step.update.c))
        made: Array = a * x + b * v + c * noise
        return made

    planned = steps(4, ode=ode)
    noise = Noise(0, (1, 4, 6), 1 if ode else 4)
    end = sample(forward, planned, noise, on_estimate=lambda step, x: found.append(x))
    assert len(found) == 4
    for x in found:
        assert np.abs(x - clean).max() < 1e-4
    assert np.abs(end - clean).max() < 1e-5
    zero = np.zeros_like(clean)
    assert np.abs(estimate(planned[-1], clean, zero, zero)).max() < 1e-5  # with nothing left, what is left is clean
