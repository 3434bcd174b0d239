"""Which videos a call asks for: files of prompts, seeds, samples, names, numbers of frames."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from exporter.cli.options import parse_frames
from exporter.cli.videos import Video, names, read_prompts, sampled
from plugins.errors import UserError


def read(path: Path, data: bytes, seed: int = 0) -> list[Video]:
    path.write_bytes(data)
    return read_prompts(path, seed)


def test_lines_of_every_system(tmp_path: Path) -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        found = read(tmp_path / "prompts.txt", end.join([b"a dog", b"", b"  a tree ", b""]))
        assert found == [Video("a dog", 0), Video("a tree", 0)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(tmp_path / "prompts.txt", "\ufeffa dog\na tree".encode()) == [Video("a dog", 0), Video("a tree", 0)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_line_ends_end_a_prompt(tmp_path: Path, separator: str) -> None:
    assert read(tmp_path / "prompts.txt", f"a dog{separator}and a cat\n".encode()) == [
        Video(f"a dog{separator}and a cat", 0)
    ]


def test_a_line_may_have_its_own_seed(tmp_path: Path) -> None:
    lines = "a dog --seed 7\na tree\na cat --seed=12345678901234567890\nthe --seed of doubt\n"
    assert read(tmp_path / "prompts.txt", lines.encode(), seed=3)[:3] == [
        Video("a dog", 7),
        Video("a tree", 3),
        Video("a cat", 12345678901234567890),
    ]


def test_a_line_of_spaces_takes_no_time(tmp_path: Path) -> None:
    started = time.process_time()
    (video,) = read(tmp_path / "prompts.txt", b"a" + b" " * 10**6 + b"cat --seedling 7")
    assert (len(video.prompt or ""), video.seed) == (10**6 + 17, 0)
    assert read(tmp_path / "prompts.txt", b"a cat" + b" " * 10**6 + b"--seed 7") == [Video("a cat", 7)]
    assert time.process_time() - started < 1


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "٣", "", "9" * 5000])
def test_seeds_that_are_none(tmp_path: Path, seed: str) -> None:
    if not seed:  # what is no option is text
        assert read(tmp_path / "prompts.txt", b"a dog --seed") == [Video("a dog --seed", 0)]
        return
    with pytest.raises(UserError, match="line 2"):
        read(tmp_path / "prompts.txt", f"a tree\na dog --seed {seed}".encode())


@pytest.mark.parametrize("data", [b"\xff\xfea\0 \0", b"caf\xe9"])
def test_files_of_other_encodings_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="UTF-8"):
        read(tmp_path / "prompts.txt", data)


def test_files_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompts"):
        read(tmp_path / "prompts.txt", b"\n \n\t\n")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "nowhere"):
        with pytest.raises(UserError, match="cannot be read"):
            read_prompts(path, 0)


def test_samples_go_on_from_the_seed() -> None:
    asked = sampled([Video("a dog", 7), Video("a tree", 0)], 3)
    assert [(video.prompt, video.seed) for video in asked] == [
        ("a dog", 7),
        ("a dog", 8),
        ("a dog", 9),
        ("a tree", 0),
        ("a tree", 1),
        ("a tree", 2),
    ]
    for wrong in (0, -1, 10_001):
        with pytest.raises(UserError, match="samples"):
            sampled([Video("a dog", 7)], wrong)


def test_names_of_a_batch(tmp_path: Path) -> None:
    assert names(tmp_path / "cat.mp4", 1) == [tmp_path / "cat.mp4"]
    assert [path.name for path in names(tmp_path / "cat.png", 10)][::9] == ["cat-01.png", "cat-10.png"]


@pytest.mark.parametrize(
    ("asked", "made"),
    [(1, 1), (5, 5), (81, 81), (2, 1), (3, 5), (4, 5), (80, 81), (82, 81), (83, 85), (84, 85), (0, 0), (-3, -3)],
)
def test_frames_are_rounded_and_said(asked: int, made: int, capsys: pytest.CaptureFixture[str]) -> None:
    """To the nearest of 4n+1, halves upwards; what is no number of frames is left to be refused."""
    assert parse_frames(asked) == made
    out, error = capsys.readouterr()
    assert out == ""
    assert error == ("" if asked == made else f"--frames {asked} becomes {made}: a video has 4n+1 frames.\n")


def test_no_frames_are_the_models() -> None:
    assert parse_frames(None) is None
