"""What reaches a terminal: foreign text is shown, never obeyed, and every encoding takes ours."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from exporter.cli import app as command_line
from exporter.progress import RichProgress
from exporter.terminal import SafeConsole, any_encoding, console, printable, say
from tests.support.bundle_factory import make_bundle
from tests.support.paths import ROOT

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202eb\x7f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\u001b[31mb"),
        ("a\rb\x07\x00", "a\\u000db\\u0007\\u0000"),
        ("\x9b2J\x7f", "\\u009b2J\\u007f"),
        ("\u202eabc\u2066\u2028", "\\u202eabc\\u2066\\u2028"),
        ("caf\udce9", "caf\\udce9"),
        ("tab\tand\nline, 猫 × é 😀 \u200f", "tab\tand\nline, 猫 × é 😀 \u200f"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


def obeyed(text: str) -> bool:
    return any(character in text for character in "\x1b\x07\r\x9b\u202e\x7f")


def test_tables_messages_and_progress_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    made = SafeConsole(file=file, width=200)
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    made.print(table)
    made.print(HOSTILE)
    progress = RichProgress(Console(file=file, force_terminal=False))
    progress.note(HOSTILE)
    with progress.stage(HOSTILE):
        pass
    say(HOSTILE)
    say(HOSTILE, error=True)
    shown = [file.getvalue(), *capsys.readouterr()]
    assert not any(map(obeyed, shown))
    assert sum(text.count("owned") for text in shown) == 9


def test_a_bar_on_a_terminal_is_printable() -> None:
    file = io.StringIO()
    with RichProgress(Console(file=file, force_terminal=True, width=120)).stage(f"load {HOSTILE}"):
        pass
    assert "\x1b]0;owned" not in file.getvalue()
    assert "\\u001b]0;owned" in file.getvalue()


def test_only_one_place_prints() -> None:
    """Nobody else writes to the terminal or makes a console: what they say passes through here."""
    for path in (ROOT / "exporter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if path.name == "child.py" and called == "sys.stdout.write":
                continue  # to its parent
            wrong = ("print", "typer.echo", "Console", "sys.stdout.write", "sys.stderr.write", "click.echo")
            assert called not in wrong, (path, called)


def ran(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str) -> tuple[int, str]:
    """Status and standard output of ``turbotrt`` in a terminal of this encoding; an error of encoding is raised."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(sys, "argv", ["turbotrt", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    out.flush()
    code = end.value.code
    return (0 if code is None else int(code)), out.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_takes_what_we_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str) -> None:
    bundle = tmp_path / "b\udcff"  # a name that is no text
    make_bundle(bundle)
    for arguments in (["list"], ["--help"], ["export", "--help"], ["generate", "--help"], ["inspect", str(bundle)]):
        code, text = ran(monkeypatch, encoding, *arguments)
        assert code == 0, arguments
        assert len(text) > 100
    code, text = ran(monkeypatch, encoding, "list")
    assert "832x480x81" in text
    if encoding == "ascii":
        assert "2 x " in text  # two experts' weights: not a question mark


def test_characters_of_ours_have_others_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    any_encoding()
    say("10⁹ bytes, 3 × 5 ≤ 16 → “a – b…” 猫")
    assert out.buffer.getvalue() == b'10^9 bytes, 3 x 5 <= 16 -> "a - b..." \\u732b\n'


def test_a_process_without_streams_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    any_encoding()
    say("a")
    say("a", error=True)
    console().print("a")


def test_a_console_in_a_pipe_is_wide() -> None:
    assert console().width == 160
