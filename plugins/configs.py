"""Tuned launch configs by kernel, SM and size: configs.json, which ``turbotrt tune`` writes and every plan reads.

A kernel's own ``CONFIGS`` hold where the table has no entry. What is chosen ends up in the plan's bytes, so an export
whose configs changed is not taken for unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
#: kernel → SM → size key → fields of the kernel's config that differ from its default.
Table = dict[str, dict[str, dict[str, dict[str, Any]]]]

FILE = Path(__file__).with_suffix(".json")


@dataclass
class Trial:
    """A config that stands in for the table's while plans are built, and the size keys it was asked for."""

    kernel: str
    config: DataclassInstance
    keys: set[str] = field(default_factory=set)


_TRIAL: ContextVar[Trial | None] = ContextVar("trial", default=None)


@cache
def table() -> Table:
    """The committed table."""
    found: Table = json.loads(FILE.read_text())
    return found


def size_key(sizes: Mapping[str, int | str]) -> str:
    """The table's key for these static sizes and flags."""
    return " ".join(f"{name}={value}" for name, value in sorted(sizes.items()))


def config_for(kernel: str, sm: int, sizes: Mapping[str, int | str], default: Config) -> Config:
    """The config of a kernel for an SM and static sizes: the table's, else ``default``.

    Raises ValueError where the table names a field that the config does not have.
    """
    key = size_key(sizes)
    trial = _TRIAL.get()
    if trial is not None and trial.kernel == kernel:
        trial.keys.add(key)
        return cast(Config, trial.config)
    entry = table().get(kernel, {}).get(str(sm), {}).get(key, {})
    known = asdict(default)
    if unknown := set(entry) - set(known):
        raise ValueError(f"{FILE.name}: {kernel} has no config field {sorted(unknown)}; it has {sorted(known)}")
    return replace(default, **entry)


@contextmanager
def trying(kernel: str, config: DataclassInstance) -> Iterator[Trial]:
    """Within it ``config_for(kernel, …)`` answers ``config``; plans must be built anew, not taken from a cache."""
    trial = Trial(kernel, config)
    token = _TRIAL.set(trial)
    try:
        yield trial
    finally:
        _TRIAL.reset(token)


def merged(old: Table, kernel: str, sm: int, entries: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table with a kernel's entries for one SM added or replaced, sorted."""
    new: Table = json.loads(json.dumps(old))
    new.setdefault(kernel, {}).setdefault(str(sm), {}).update({key: dict(value) for key, value in entries.items()})
    return new


def dumped(content: Table) -> str:
    """The file's text: stable order, one size a line."""
    lines = []
    for kernel, by_sm in sorted(content.items()):
        for sm, entries in sorted(by_sm.items()):
            rows = ",\n".join(f"   {json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries))
            lines.append((kernel, f'  "{sm}": {{\n{rows}\n  }}'))
    kernels = [
        f' "{name}": {{\n' + ",\n".join(text for kernel, text in lines if kernel == name) + "\n }"
        for name in sorted(content)
    ]
    return "{\n" + ",\n".join(kernels) + "\n}\n" if kernels else "{}\n"
