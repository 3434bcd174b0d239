"""Our extras by what they are for, and which of their packages are here; nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires

from plugins.errors import UserError
from runtime.versions import OURS, installed_versions

#: The extras in the order in which one needs them; "" is the base install.
EXTRAS: Mapping[str, str] = {
    "": "run engines",
    "export": "export, compare, tune; the torch backend",
    "video": "prompts to mp4",
    "tensorrt": "engines of the full TensorRT, for data centre GPUs",
}


@dataclass(frozen=True)
class Extra:
    """One extra: package → version, and the packages that are missing."""

    name: str
    purpose: str
    found: dict[str, str]
    missing: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install '{OURS}[{self.name}]'" if self.name else f"pip install {OURS}"


def extras() -> list[Extra]:
    """Every extra with its packages here, by what the installed distribution asks for. Raises UserError."""
    listed: dict[str, list[str]] = {name: [] for name in EXTRAS}
    for requirement in _requirements():
        package = re.split(r"[\s<>=~!;\[(]", requirement, maxsplit=1)[0]
        marked = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", requirement)
        name = marked[1] if marked else ""
        if name in listed:
            listed[name].append(package)
    made = []
    for name, packages in listed.items():
        found = installed_versions(packages)
        missing = tuple(package for package in packages if package not in found)
        made.append(Extra(name, EXTRAS[name], found, missing))
    return made


def _requirements() -> list[str]:
    """What pip knows of us. Raises UserError where it knows nothing: a source tree on PYTHONPATH is not installed."""
    try:
        return requires(OURS) or []
    except PackageNotFoundError as error:
        raise UserError(
            f"{OURS} is not installed here, so what it needs is not known.",
            expected=f"{OURS} among pip's packages",
            got="its sources alone",
            remedy="pip install '.[export,video]' in a clone",
        ) from error
