"""The project's documents, and what a test reads of them: shell lines, Python blocks, links and headings."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.paths import ROOT

#: Every document that is for people, by its path from the root.
DOCUMENTS: tuple[str, ...] = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "engines/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def shell_lines(path: Path) -> list[str]:
    """The commands of a document: each line of its ``sh`` blocks, without comments; a backslash joins lines."""
    lines = "".join(_blocks(path, "sh")).replace("\\\n", " ").splitlines()
    bare = (line.partition(" #")[0].strip() for line in lines)
    return [" ".join(line.split()) for line in bare if line and not line.startswith("#")]


def python_blocks(path: Path) -> list[str]:
    """The Python of a document, block by block."""
    return _blocks(path, "python")


def cpp_blocks(path: Path) -> list[str]:
    """The same of its C++."""
    return _blocks(path, "cpp")


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> list[str]:
    """What a document links to or shows, as it is written: files, anchors, addresses."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
