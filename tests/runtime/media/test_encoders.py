"""Codecs, containers and gif: every kind holds the frames, says what it was made from, and is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

from plugins.errors import UserError
from runtime.media.files import encoders
from runtime.media.files.encoders import CONTAINERS, ENCODERS, Choice, Codec, Encoding
from runtime.media.files.gif import milliseconds
from runtime.media.files.kinds import sink_for
from runtime.media.files.writer import BackgroundWriter

FACTS = {"prompt": "Ein Käfer ☂", "seed": "7", "turbotrt": "0"}
SIZE = (96, 64)


def moving(count: int) -> npt.NDArray[np.uint8]:
    """Red, green and blue fields under a rising brightness."""
    frames = np.zeros((count, SIZE[1], SIZE[0], 3), np.uint8)
    for channel in range(3):
        frames[:, :, 32 * channel : 32 * channel + 32, channel] = 180
    return frames + (4 * np.arange(count, dtype=np.uint8))[:, None, None, None]


def written(path: Path, count: int = 9, fps: int | None = None, **how: Any) -> npt.NDArray[np.uint8]:
    frames = moving(count)
    with BackgroundWriter(sink_for(path, SIZE, 16, Encoding(facts=FACTS, fps=fps, **how))) as writer:
        for chunk in (frames[:1], *np.split(frames[1:], (count - 1) // 4)):
            writer.write(chunk)
    assert list(path.parent.iterdir()) == [path]
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "found"),
    [
        ("cat.mp4", "auto", "h264"),
        ("cat.MP4", "h264", "h264"),
        ("cat.mp4", "hevc", "hevc"),
        ("cat.mp4", "av1", "libdav1d|av1"),
        ("cat.webm", "auto", "vp9|libvpx-vp9"),
        ("cat.webm", "av1", "libdav1d|av1"),
    ],
)
def test_a_video_file(tmp_path: Path, name: str, codec: Codec, found: str, capfd: pytest.CaptureFixture[str]) -> None:
    frames = written(tmp_path / name, codec=codec, fps=24)
    assert capfd.readouterr() == ("", "")  # libraries say nothing on their own
    with av.open(str(tmp_path / name)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name in found.split("|")
        assert (stream.width, stream.height, stream.average_rate) == (*SIZE, 24)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert not file.streams.audio
        tags = {key.lower(): value for key, value in file.metadata.items()}
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])
    assert tags["title"] == FACTS["prompt"]
    assert json.loads(tags["comment"]) == FACTS
    assert seen.shape == frames.shape
    assert np.abs(seen.astype(float) - frames).mean() < 8  # chroma of half the size


def test_the_index_stands_in_front(tmp_path: Path) -> None:
    written(tmp_path / "cat.mp4")
    data = (tmp_path / "cat.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    (tmp_path / "cat.mp4").unlink()
    written(tmp_path / "cat.webm")
    data = (tmp_path / "cat.webm").read_bytes()
    assert 0 < data.index(bytes.fromhex("1c53bb6b")) < data.index(bytes.fromhex("1f43b675"))  # cues, first cluster


def test_hevc_is_named_as_players_want_it(tmp_path: Path) -> None:
    written(tmp_path / "cat.mp4", codec="hevc")
    assert b"hvc1" in (tmp_path / "cat.mp4").read_bytes()


@pytest.mark.parametrize("name", ["cat.mp4", "cat.webm"])
def test_quality_is_size(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    sizes = []
    for quality in (1, 40, 100):
        with sink_for(tmp_path / name, SIZE, 16, Encoding(quality=quality)) as sink:
            sink.write(noise)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]


def test_every_encoders_scale_is_legal() -> None:
    most = {"libx264": 51, "libx265": 51, "libsvtav1": 63, "libvpx-vp9": 63, "h264_nvenc": 51, "hevc_nvenc": 51}
    for kinds in ENCODERS.values():
        assert not kinds[-1].hardware
        for encoder in kinds:
            factors = [int(encoder.options(quality)[encoder.option]) for quality in range(1, 101)]
            assert factors == sorted(factors, reverse=True)
            assert 1 <= factors[-1] < factors[0] <= most.get(encoder.name, 63)
            assert encoder.options(None) == encoder.options(encoders.QUALITY)
    assert ENCODERS["h264"][-1].options(None)["crf"] == "18"
    assert {codec for kind in CONTAINERS.values() for codec in kind.codecs} == set(ENCODERS)


def test_a_gif(tmp_path: Path) -> None:
    frames = written(tmp_path / "cat.gif")
    with Image.open(tmp_path / "cat.gif") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (9, SIZE, 0)
        assert json.loads(image.info["comment"]) == FACTS
        shown, seen = [], []
        for index in range(9):
            image.seek(index)
            shown.append(image.info["duration"])
            seen.append(np.asarray(image.convert("RGB")))
    assert shown == [60, 60, 70, 60, 60, 70, 60, 60, 60] or sum(shown) == 560
    assert np.abs(np.stack(seen).astype(float) - frames).mean() < 4


def test_a_gif_keeps_the_pace() -> None:
    assert [sum(milliseconds(count, 16)) for count in (16, 81)] == [1000, 5060]
    assert list(milliseconds(3, 10)) == [100, 100, 100]


@pytest.mark.parametrize("name", ["cat.png", "cat.jpg"])
def test_a_picture_says_what_it_was_made_from(tmp_path: Path, name: str) -> None:
    with sink_for(tmp_path / name, SIZE, 16, Encoding(facts=FACTS)) as sink:
        sink.write(moving(1))
    with Image.open(tmp_path / name) as image:
        said = image.info["Comment"] if name.endswith("png") else image.info["comment"]
        assert json.loads(said) == FACTS


@pytest.mark.parametrize("name", ["cat.mp4", "cat.webm", "cat.gif"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"before")

    def interrupted() -> None:
        with BackgroundWriter(sink_for(tmp_path / name, SIZE, 16)) as writer:
            writer.write(moving(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"before")]


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("cat.webm", {"codec": "h264"}, r"\.webm file holds no h264(.|\n)*auto \(vp9\), av1"),
        ("cat.mp4", {"codec": "mpeg2"}, "--codec 'mpeg2' is not known"),
        ("cat.mp4", {"quality": 101}, "quality cannot be used"),
        ("cat.gif", {"fps": 0}, "frame rate cannot be used"),
        ("frames", {"fps": 24}, "has no frame rate"),
        ("cat.safetensors", {"fps": 24}, "has no frame rate"),
        ("cat.gif", {"quality": 50}, "written by no video codec"),
        ("cat.png", {"codec": "hevc"}, "written by no video codec"),
        ("frames", {"codec": "av1"}, "written by no video codec"),
        ("cat.mkv", {}, r"no kind of output(.|\n)*NAME\.webm, NAME\.gif"),
    ],
)
def test_what_a_file_cannot_be_is_told_before_it_is_begun(
    tmp_path: Path, name: str, how: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        sink_for(tmp_path / name, SIZE, 16, Encoding(**how))


def test_the_gpus_encoder_comes_first_where_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opens(name: str, size: tuple[int, int]) -> bool:
        asked.append((name, size))
        return name == "hevc_nvenc"

    encoders._opened.cache_clear()
    monkeypatch.setattr(encoders, "opens", opens)
    try:
        assert [Choice(codec, SIZE).result().name for codec in ("h264", "hevc", "hevc", "vp9")] == [
            "libx264",
            "hevc_nvenc",
            "hevc_nvenc",
            "libvpx-vp9",
        ]
    finally:
        encoders._opened.cache_clear()
    assert asked == [("h264_nvenc", SIZE), ("hevc_nvenc", SIZE)]  # once a process


def test_an_encoder_is_there_if_it_opens() -> None:
    assert encoders.opens("libx264", SIZE)
    assert not encoders.opens("no_such_encoder", SIZE)
    assert not encoders.opens("libx264", (0, 0))


def test_the_gpus_options_are_those_of_the_wheel() -> None:
    """None of these encoders opens here: at least their options' names and values must be known."""
    for encoder in (one for kinds in ENCODERS.values() for one in kinds if one.hardware):
        listed = getattr(av.CodecContext.create(encoder.name, "w"), "supported_options", None)
        if listed is None:
            pytest.skip("this PyAV lists no options")
        known = {option.name: option for option in (*listed.generic, *listed.private)}
        for name, value in encoder.options(None).items():
            assert (
                known[name].min <= float(value) <= known[name].max
                if value.isdigit()
                else value in {choice.name for choice in known[name].choices}
            ), (encoder.name, name)
