"""Which cases there are, in which order, and which of them share a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import get_args

from exporter.selftest.rows import Case, Host, Part
from exporter.selftest.variants import EMBEDDED, LARGE, QUICK, SMALL, VARIANTS
from plugins.errors import UserError

#: The parts as a user reads them.
PARTS: Mapping[Part, str] = MappingProxyType(
    {
        "machine": "look around",
        "export": "export",
        "ops": "every op's plan alone",
        "stages": "every stage alone",
        "generate": "whole generations",
        "cold": "a cold start",
        "warm": "a warm start",
        "times": "times of a block and a step",
    }
)
#: Who may run our ops.
HOSTS: tuple[str, ...] = tuple(host for host in get_args(Host) if host)
_CHOSEN: tuple[str, ...] = tuple(part for part in PARTS if part not in ("machine", "export"))


def kinds_of(only: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The parts, variants and hosts that were asked for, all of a kind where none was. Raises UserError."""
    kinds = _CHOSEN, tuple(VARIANTS), HOSTS
    known = [name for kind in kinds for name in kind]
    for name in only:
        if name not in known:
            raise UserError("The selftest has no such part or bundle.", expected=", ".join(known), got=name)
    parts, variants, hosts = (tuple(name for name in kind if name in only) or kind for kind in kinds)
    return parts, variants, hosts


def groups(only: Sequence[str], hosts: Sequence[Host], *, quick: bool, embeds: bool = False) -> list[list[Case]]:
    """Cases by the process that they share: of one part and one host; each start has its own.

    Without hosts, bundles are made and nothing more. ``embeds``: one of them can have its plugins inside.
    """
    parts, variants, wanted = kinds_of(only)
    embeds = embeds and not quick and EMBEDDED in variants and "embedded" in wanted and "generate" in parts
    runs, hosts = bool(hosts), [host for host in hosts if host in wanted]
    known = VARIANTS if hosts or not runs else ()
    tested, timed = set(parts) != {"times"}, "times" in parts and (not quick or "times" in only)
    small = [name for name in known if name in (QUICK if quick else SMALL) and name in variants and tested]
    large = [name for name in known if name in LARGE and name in variants and timed]
    embedded = [EMBEDDED] if embeds else []
    first = [(host, name) for host in hosts[:1] if host != "torch" for name in small[:1]]
    found = [
        _group("export", [*small, *embedded, *large]),
        _group("ops", small if hosts else []),
        *(_group("stages", small, host) for host in hosts),
        *(_group("generate", small, host) for host in hosts),
        _group("generate", embedded if runs else [], "embedded"),
        *(_group("cold", [name], host) for host, name in first),
        *(_group("warm", [name], host) for host, name in first),
        *(_group("times", large, host) for host in hosts),
    ]
    return [group for group in found if group and group[0].part in ("export", *parts)]


def _group(part: Part, variants: Sequence[str], host: Host = "") -> list[Case]:
    return [Case(part=part, variant=name, host=host) for name in variants]
