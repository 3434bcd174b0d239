"""A prompt → token ids, as the authors prepare it: ftfy, HTML entities, white space, then umT5's tokenizer."""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.input_files import read_input

MAX_TOKENS = 512
END = 1  # the id of umT5's end mark
MAX_FILE_BYTES = 256 << 20  # umT5's own tokenizer.json takes 17 MB
_SHOWN = 240  # characters of what is cut


def clean(prompt: str) -> str:
    """The prompt as the tokenizer gets it: ftfy's repairs, HTML entities resolved (some are escaped twice), white space
    collapsed. Raises UserError on bytes that are no text.
    """
    ftfy = _needed("ftfy")
    fixed: str = ftfy.fix_text(_decoded(prompt))
    return re.sub(r"\s+", " ", html.unescape(html.unescape(fixed))).strip()


def _decoded(prompt: str) -> str:
    """Python keeps bytes of a command line that its locale cannot read as single surrogates: here they are UTF-8."""
    try:
        return prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise UserError(
            "The prompt is no text.",
            expected="characters in UTF-8",
            got=ascii(prompt[:80]),
            remedy="write it in UTF-8; a prompt from a file may be given by --prompts FILE",
        ) from error


class PromptTokenizer:
    """A bundle's tokenizer.json. Raises UserError if it is missing or is not umT5's kind."""

    def __init__(self, path: Path) -> None:
        tokenizers = _needed("tokenizers")
        data = read_input(path, MAX_FILE_BYTES, "a tokenizer.json")
        with _failures(f"{path} is no tokenizer.", "export with --tokenizer again"):
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()

    def __call__(self, prompt: str) -> list[int]:
        """Ids of the cleaned prompt and the end mark, 512 at most. Raises UserError on an empty prompt."""
        ids = self._encoded(prompt)[1].ids
        return ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], END]

    def cut(self, prompt: str) -> str | None:
        """How much of a prompt that is too long is not read, and what; None where all of it is."""
        text, encoding = self._encoded(prompt)
        if (count := len(encoding.ids)) <= MAX_TOKENS:
            return None
        rest = text[encoding.offsets[MAX_TOKENS - 1][0] :].strip()
        shown = rest if len(rest) <= _SHOWN else f"{rest[:_SHOWN]} … ({len(rest):,} characters)"
        return (
            f"The prompt “{text[:40]}…” is {count:,} tokens long, and the model reads {MAX_TOKENS}: "
            f"its last {count - MAX_TOKENS:,} are cut, which say: {shown}"
        )

    def _encoded(self, prompt: str) -> tuple[str, Any]:
        """The cleaned prompt and its tokenizers.Encoding, the end mark with it."""
        text = clean(prompt)
        if not text:
            raise UserError("The prompt is empty.", expected="a description of the video")
        with _failures("The tokenizer cannot read this prompt.", "export with --tokenizer google/umt5-xxl"):
            encoding = self._tokenizer.encode(text)
        ids = encoding.ids
        if len(ids) < 2 or ids[-1] != END:
            raise UserError(
                "The tokenizer does not end prompts as umT5's does.",
                expected=f"a last id of {END}",
                got=str(ids[-3:]),
                remedy="export with --tokenizer google/umt5-xxl",
            )
        return text, encoding


def _needed(name: str) -> Any:
    """A package that the base install is without. Raises UserError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"Prompts need {name}, which is not installed.", remedy="pip install 'turbotrt[video]', or give --embeds"
        ) from error


@contextmanager
def _failures(problem: str, remedy: str) -> Iterator[None]:
    """Whatever tokenizers raises as a UserError: plain Exception, and for a panic a BaseException of its own."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(problem, got=(str(error).splitlines() or [type(error).__name__])[0], remedy=remedy) from error
