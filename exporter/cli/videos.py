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
_DIGITS = 100  # Python itself refuses to read thousands


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
    # By its last mark, not by a pattern: one with two repetitions takes hours for a line of a million spaces.
    prompt, mark, rest = line.rpartition("--seed")
    own = rest.replace("=", " ").split()
    if not (mark and len(own) == 1 and prompt[-1:].isspace() and (rest[0] == "=" or rest[0].isspace())):
        return Video(line, seed)
    if not (own[0].isascii() and own[0].isdecimal() and len(own[0]) <= _DIGITS):
        raise UserError(
            f"The seed of line {number} in {path} cannot be read.",
            expected=f"an integer of 0 or more, of at most {_DIGITS} digits",
            got=own[0] if len(own[0]) <= _DIGITS else f"{len(own[0]):,} characters",
        )
    return Video(prompt.rstrip(), int(own[0]))


def names(out: Path, count: int) -> list[Path]:
    """The outputs of a batch: numbers before the suffix, from 1, where there are several."""
    if count == 1:
        return [out]
    digits = len(str(count))
    return [out.with_name(f"{out.stem}-{number:0{digits}d}{out.suffix}") for number in range(1, count + 1)]
