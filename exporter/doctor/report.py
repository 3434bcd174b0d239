"""Everything that ``turbotrt doctor`` finds, as one value."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from exporter.doctor.abilities import Ability, abilities
from exporter.doctor.caches import Cache, caches
from exporter.doctor.gpu import Gpus, look
from exporter.doctor.packages import Extra, extras
from plugins.library import library_path, library_version
from runtime.versions import own_version


@dataclass(frozen=True)
class Health:
    """The machine, the packages, the GPUs, the caches, and what can be done with them.

    ``memory_bytes`` is RAM; ``library`` the plugin library's version, None where Python's plugins run.
    """

    version: str
    system: str
    python: str
    cores: int
    memory_bytes: int
    library: str | None
    gpus: Gpus
    extras: tuple[Extra, ...]
    caches: tuple[Cache, ...]
    abilities: tuple[Ability, ...]

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def examine() -> Health:
    """Look at everything; nothing is changed, and no GPU memory is taken."""
    found, gpus = extras(), look()
    return Health(
        version=own_version(),
        system=platform.platform(),
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        library=None if (path := library_path()) is None else str(library_version(path)),
        gpus=gpus,
        extras=tuple(found),
        caches=tuple(caches()),
        abilities=tuple(abilities({extra.name: extra for extra in found}, gpus)),
    )
