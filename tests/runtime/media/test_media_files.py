"""Images in, videos out: sizes, resizing, mp4 and png, and what happens on errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

from plugins.errors import UserError
from runtime.media.files.image import adaptive_size, conditioning_chunks, first_frame
from runtime.media.files.kinds import sink_for
from runtime.media.files.writer import BackgroundWriter


def moving(count: int, width: int = 64, height: int = 48) -> npt.NDArray[np.uint8]:
    """Frames whose brightness rises, with a bright square moving right."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for index in range(count):
        frames[index] += np.uint8(4 * index)
        frames[index, 8:24, 2 * index : 2 * index + 16] = (250, 120, 30)
    return frames


def test_mp4_holds_the_frames(tmp_path: Path) -> None:
    frames, path = moving(17), tmp_path / "cat.mp4"
    with BackgroundWriter(sink_for(path, (64, 48), 16)) as writer:
        for chunk in (frames[:1], *np.split(frames[1:], 4)):
            writer.write(chunk)
    assert writer.frames == 17
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (64, 48, 16)
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])
    assert seen.shape == frames.shape
    assert np.abs(seen.astype(float) - frames).mean() < 6
    assert list(tmp_path.iterdir()) == [path]


def test_png_frames_are_exact(tmp_path: Path) -> None:
    frames = moving(3)
    with sink_for(tmp_path / "frames", (64, 48), 16) as sink:
        sink.write(frames)
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "frames" / "00002.png")), frames[2])
    with pytest.raises(UserError, match="exists already"), sink_for(tmp_path / "frames", (64, 48), 16):
        pass


@pytest.mark.parametrize("name", ["cat.mp4", "frames"])
def test_a_failure_leaves_nothing(tmp_path: Path, name: str) -> None:
    def interrupted() -> None:
        with BackgroundWriter(sink_for(tmp_path / name, (64, 48), 16)) as writer:
            writer.write(moving(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_sink_reaches_the_caller(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"shape|array|dimension"),
        BackgroundWriter(sink_for(tmp_path / "cat.mp4", (64, 48), 16)) as writer,
    ):
        writer.write(np.zeros((1, 48, 64), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no kind of output"):
        sink_for(tmp_path / "cat.avi", (64, 48), 16)
    with pytest.raises(UserError, match="cannot be written"), sink_for(tmp_path / "no" / "cat.mp4", (64, 48), 16):
        pass


@pytest.mark.parametrize(
    ("image", "target", "wanted"),
    [
        ((1280, 720), (1280, 720), (1280, 720)),
        ((1000, 1000), (1280, 720), (960, 960)),
        ((720, 1280), (832, 480), (480, 848)),
        ((3000, 1000), (832, 480), (1088, 368)),
    ],
)
def test_adaptive_size(image: tuple[int, int], target: tuple[int, int], wanted: tuple[int, int]) -> None:
    """round(√(area·w/h)/16)·16 by √(area·h/w) likewise, worked out by hand."""
    assert adaptive_size(image, target) == wanted


def test_first_frame_stretches_or_crops() -> None:
    """Left half black, right half white: stretched, both halves stay; cropped to a square, both are still there."""
    pixels = np.zeros((40, 160, 3), np.uint8)
    pixels[:, 80:] = 255
    pixels[:, :20] = 128  # what cropping to a square must cut off
    image = Image.fromarray(pixels)
    stretched = first_frame(image, (64, 64))
    assert stretched.shape == (3, 64, 64)
    assert abs(stretched[0, 30, 2]) < 0.01
    assert stretched[0, 30, 20] == -1
    assert stretched[0, 30, 60] == 1
    cropped = first_frame(image, (32, 32), crop=True)
    assert cropped[0, 10, 0] == -1
    assert cropped[0, 10, 31] == 1


def test_resizing_is_antialiased() -> None:
    """One-pixel stripes shrink to grey; without antialiasing they would stay black or white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(first_frame(Image.fromarray(stripes), (16, 16))).max() < 0.2


def test_conditioning_video() -> None:
    frame = np.ones((3, 16, 32), np.float32)
    chunks = list(conditioning_chunks(frame, 3))
    assert [chunk.shape for chunk in chunks] == [(3, 1, 16, 32), (3, 4, 16, 32), (3, 4, 16, 32)]
    assert chunks[0].min() == 1
    assert not chunks[2].any()
