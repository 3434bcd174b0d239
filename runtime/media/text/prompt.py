"""A prompt → token ids, as the authors prepare it: HTML entities resolved, white space collapsed, umT5's tokenizer."""

from __future__ import annotations

import html
import re
from pathlib import Path

from plugins.errors import UserError

MAX_TOKENS = 512
END = 1  # the id of umT5's end mark


def clean(prompt: str) -> str:
    """The prompt with HTML entities resolved (twice: some are escaped twice) and white space collapsed."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


class PromptTokenizer:
    """A bundle's tokenizer.json. Raises UserError if it is missing or is not umT5's kind."""

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                "Prompts need the tokenizers package, which is not installed.",
                remedy="pip install 'turbotrt[video]', or give --embeds",
            ) from error
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for a file it cannot read
            raise UserError(
                f"{path} is no tokenizer.", got=str(error).splitlines()[0], remedy="export with --tokenizer again"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def __call__(self, prompt: str) -> list[int]:
        """Ids of the cleaned prompt and the end mark, 512 at most. Raises UserError on an empty prompt."""
        text = clean(prompt)
        if not text:
            raise UserError("The prompt is empty.", expected="a description of the video")
        ids = [int(token) for token in self._tokenizer.encode(text).ids]
        if len(ids) < 2 or ids[-1] != END:
            raise UserError(
                "The tokenizer does not end prompts as umT5's does.",
                expected=f"a last id of {END}",
                got=str(ids[-3:]),
                remedy="export with --tokenizer google/umt5-xxl",
            )
        return ids
