"""Which videos a call of ``generate`` asks for: prompts with their seeds, samples of each, and names of outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError
from runtime.input_files import read_input

MAX_SAMPLES = 10_000
MAX_BYTES = 16 << 20  # of a file of prompts
_SEED = re.compile(r"(.*?)\s+--seed[\s=]+(\S+)")


@dataclass(frozen=True)
class Video:
    """One video: its prompt, None where embeddings are given, and the seed of its noise."""

    prompt: str | None
    seed: int


def sampled(videos: Sequence[Video], samples: int) -> list[Video]:
    """Each video so many times, with its seed and those that follow. Raises UserError."""
    if not 1 <= samples <= MAX_SAMPLES:
        raise UserError("This number of samples cannot be made.", expected=f"1 to {MAX_SAMPLES:,}", got=str(samples))
    return [Video(video.prompt, video.seed + more) for video in videos for more in range(samples)]


def read_prompts(path: Path, seed: int) -> list[Video]:
    """The prompts of a file, one a line; empty lines are none. Raises UserError.

    A line may end in its own seed: ``A cat on a surfboard --seed 7``. Lines end where text files' do, at no other of
    Unicode's separators; a byte order mark is none of the text.
    """
    try:
        text = read_input(path, MAX_BYTES, "a text file in UTF-8").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read as prompts.", expected="a text file in UTF-8", got=str(error)
        ) from error
    lines = re.split("\r\n|\r|\n", text)
    found = [_video(path, number, line.strip(), seed) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{path} holds no prompts.", expected="one a line")
    return found


def _video(path: Path, number: int, line: str, seed: int) -> Video:
    own = _SEED.fullmatch(line)
    if own is None:
        return Video(line, seed)
    if not own[2].isascii() or not own[2].isdecimal():
        raise UserError(
            f"The seed of line {number} in {path} cannot be read.", expected="an integer of 0 or more", got=own[2]
        )
    return Video(own[1], int(own[2]))


def names(out: Path, count: int) -> list[Path]:
    """The outputs of a batch: numbers before the suffix, from 1, where there are several."""
    if count == 1:
        return [out]
    digits = len(str(count))
    return [out.with_name(f"{out.stem}-{number:0{digits}d}{out.suffix}") for number in range(1, count + 1)]
