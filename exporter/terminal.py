"""What reaches the terminal: no text from a file or a name moves the cursor there, and no encoding makes it fail."""

from __future__ import annotations

import codecs
import json
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

#: Characters that a terminal obeys rather than shows, ours (tab, new line) left out: C0, DEL, C1, those that turn the
#: direction of writing, the two separators of lines; and halves of characters, which no encoding has.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: Of the characters that our texts use, what stands for them where the encoding has them not.
_INSTEAD = {
    "×": "x",
    "–": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "·": "*",
    "≤": "<=",
    "≥": ">=",
    "⁹": "^9",
    "²": "^2",
    "“": '"',
    "”": '"',
    "’": "'",
}
_PLAIN = "turbotrt-plain"


def printable(text: str) -> str:
    """The text with what a terminal would obey written out as JSON has it, so that JSON stays JSON: ESC as \\u001b."""
    return _OBEYED.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04x}"


def say(text: str, *, error: bool = False) -> None:
    """Print a line to standard output, or to standard error."""
    stream = sys.stderr if error else sys.stdout
    if stream is not None:  # a process may have been started without
        stream.write(printable(text) + "\n")
        stream.flush()


class SafeConsole(Console):
    """A console whose strings, cells of tables among them, are printable; styles are ours to give."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def console(*, error: bool = False) -> Console:
    """For tables and progress: names come from files, so no markup; wide enough where there is no terminal."""
    made = SafeConsole(stderr=error, markup=False, emoji=False, highlight=False)
    if not made.is_terminal and not error:
        made.width = 160
    return made


def any_encoding() -> None:
    """Let standard output and error take every character, in whatever encoding: ``main`` calls it first."""
    codecs.register_error(_PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream that stands in for one may have none
        if reconfigure is not None:
            reconfigure(errors=_PLAIN)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(character) or _escaped(character) for character in wrong), error.end
