"""A prompt as the authors' program reads it, and what happens to one that is too long or no text."""

from __future__ import annotations

import base64
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")
ftfy = pytest.importorskip("ftfy")

from plugins.errors import UserError
from runtime.media.text.prompt import PromptTokenizer, clean
from tests.support.media_bundle import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> PromptTokenizer:
    return PromptTokenizer(tokenizer_file)


def theirs(text: str) -> str:
    """Wan's ``basic_clean`` and then ``whitespace_clean``, as published with the text encoder."""
    import html

    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


PROMPTS = [
    ("“A cat’s ‘life’”", "\"A cat's 'life'\""),  # curly quotes
    ("ＡＢＣ　１２３", "ABC 123"),  # full width
    ("the ﬁrst ﬂower, oﬃce", "the first flower, office"),  # ligatures
    ("schÃ¶n cafÃ©", "schön café"),  # UTF-8 read as Latin-1
    ("itâ€™s", "it's"),
    ("a\x00cat\x07 sat\x1b[31m red", "acat sat red"),  # control characters, a terminal's colours
    ("cafe\u0301", "café"),  # NFC
    ("a\u2028b", "a b"),
    ("\ufeffa cat", "a cat"),
    ("Tom &amp;amp; Jerry &lt;3", "Tom & Jerry <3"),
    ("  a  cat\n on\ta surfboard ", "a cat on a surfboard"),
    ("一只猫在冲浪", "一只猫在冲浪"),
    ("😀 a cat", "😀 a cat"),
]


@pytest.mark.parametrize(("prompt", "want"), PROMPTS)
def test_prompts_are_cleaned_as_the_authors_clean_them(tokenizer: PromptTokenizer, prompt: str, want: str) -> None:
    assert clean(prompt) == theirs(prompt) == want
    assert tokenizer(prompt) == tokenizer._tokenizer.encode(want).ids


def test_bytes_that_the_locale_could_not_read_are_utf8(tokenizer: PromptTokenizer) -> None:
    """In an ASCII locale Python hands over a command line's bytes as single surrogates."""
    handed_over = "un café à Zürich, 猫".encode().decode("ascii", "surrogateescape")
    assert clean(handed_over) == "un café à Zürich, 猫"
    assert tokenizer(handed_over) == tokenizer("un café à Zürich, 猫")


@pytest.mark.parametrize("prompt", ["a cat \udcff\udcfe", "caf\udce9", "\ud83d", "\ude00\ud83d"])
def test_bytes_that_are_no_text_are_refused(tokenizer: PromptTokenizer, prompt: str) -> None:
    with pytest.raises(UserError, match="no text"):
        tokenizer(prompt)


def test_what_is_cut_is_said(tokenizer: PromptTokenizer) -> None:
    """511 letters are read, each a token, and the end mark; the marked space at the front is one more."""
    letters = "".join(string.ascii_letters[i % 52] for i in range(600))
    whole = letters[:510]
    assert len(tokenizer(whole)) == 512
    assert tokenizer.cut(whole) is None
    ids = tokenizer(letters)
    assert len(ids) == 512
    assert ids[-1] == 1
    assert ids[:-1] == tokenizer(whole)[:-1]
    said = tokenizer.cut(letters)
    assert said is not None
    assert "602 tokens" in said
    assert "its last 90 are cut" in said
    assert said.endswith(letters[510:])
    long = tokenizer.cut("x " * 3000)
    assert long is not None
    assert len(long) < 500


def _broken(tokenizer_file: Path, path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**json.loads(tokenizer_file.read_text()), **changes}))
    return path


def test_a_panic_of_the_library_is_a_user_error(tokenizer_file: Path, tmp_path: Path) -> None:
    """Rust's panics arrive as BaseException: in loading, and in reading a prompt."""
    garbage = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff\xff\xff").decode()}
    with pytest.raises(UserError, match="is no tokenizer"):
        PromptTokenizer(_broken(tokenizer_file, tmp_path / "charsmap.json", normalizer=garbage))
    template = {**json.loads(tokenizer_file.read_text())["post_processor"], "special_tokens": {}}
    late = PromptTokenizer(_broken(tokenizer_file, tmp_path / "template.json", post_processor=template))
    with pytest.raises(UserError, match="cannot read this prompt"):
        late("a cat")


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer"):
        PromptTokenizer(tmp_path / "t.json")
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read"):
        PromptTokenizer(tmp_path / "nowhere.json")


def test_an_interruption_is_none_of_the_librarys_errors(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed:
        def encode(self, text: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_tokenizer", Pressed())
    with pytest.raises(KeyboardInterrupt):
        tokenizer("a cat")


@pytest.mark.parametrize("name", ["ftfy", "tokenizers"])
def test_without_the_library(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UserError, match=f"Prompts need {name}, which is not installed"):
        PromptTokenizer(tokenizer_file)("a cat")
