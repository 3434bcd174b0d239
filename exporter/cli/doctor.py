"""``turbotrt doctor``: what is installed, what this machine can do, and what mends the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from exporter.cli.options import JsonOption
from exporter.terminal import console, say

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.doctor.report import Health


def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed here, which GPU there is, what both can do, and the command that mends what is missing.

    Nothing is changed, and no device memory is taken. Add the output of [bold]turbotrt doctor --json[/] to a report.
    """
    from exporter.doctor.report import examine

    found = examine()
    if as_json:
        say(json.dumps(found.plain(), indent=2))
    else:
        _show(console(), found)


def _show(screen: Console, found: Health) -> None:
    from exporter.cli.catalogue import gigabytes, open_table

    screen.print(f"turbotrt {found.version}, Python {found.python}, {found.system}")
    screen.print(f"{found.cores} cores, {gigabytes(found.memory_bytes)} of memory")
    screen.print(f"plugins: {found.library or 'in Python; make native builds them as a library'}")
    gpus = found.gpus
    for gpu in gpus.devices:
        named = ", ".join(gpu.exports) or "no --gpu is for it"
        screen.print(f"{gpu.name}: {gigabytes(gpu.memory_bytes)}, sm_{gpu.sm} (--gpu {named})")
    screen.print(f"GPU driver {gpus.driver or 'none'}, CUDA {gpus.cuda or 'none'}. {gpus.why_none or ''}".rstrip())
    table = open_table("What works here")
    for heading in ("", "what", "why"):
        table.add_column(heading, no_wrap=heading == "")
    for ability in found.abilities:
        mends = f"\n{ability.remedy}" if ability.remedy else ""
        table.add_row("yes" if ability.works else "no", ability.what, ability.why + mends)
    screen.print(table)
    table = open_table("Installed")
    for heading in ("extra", "for", "packages"):
        table.add_column(heading)
    for extra in found.extras:
        have = ", ".join(f"{name} {version}" for name, version in extra.found.items())
        missing = f"missing: {', '.join(extra.missing)}; {extra.remedy}" if extra.missing else ""
        table.add_row(extra.name or "(base)", extra.purpose, "\n".join(filter(None, (have, missing))))
    screen.print(table)
    table = open_table("Caches")
    for heading in ("what", "folder", "holds", "free", "elsewhere by"):
        table.add_column(heading)
    for cache in found.caches:
        folder = f"{cache.folder}\ncannot be written: {cache.problem}" if cache.problem else cache.folder
        table.add_row(cache.what, folder, gigabytes(cache.bytes), gigabytes(cache.free), cache.variable)
    screen.print(table)
