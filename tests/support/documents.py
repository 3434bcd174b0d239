"""The project's documents, and what a test reads of them."""

from __future__ import annotations

import re
from pathlib import Path


def shell_lines(path: Path) -> list[str]:
    """The commands of a document: each line of its ``sh`` blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]
