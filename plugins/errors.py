"""The one exception type for mistakes a user can mend, and the one kind of warning."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave cannot work: the message says what was expected, what came, and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """

    def __init__(self, problem: str, *, expected: str | None = None, got: str | None = None, remedy: str | None = None):
        lines = [problem]
        lines += [f"  {label}: {text}" for label, text in (("expected", expected), ("got", got)) if text]
        lines += [f"  remedy:   {remedy}"] if remedy else []
        super().__init__("\n".join(lines))


class Notice(UserWarning):
    """Something the user should hear of, though the work goes on; the command line prints it in one line."""
