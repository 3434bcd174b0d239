"""What a selftest found: rows, and the report of all of them that goes into a JSON file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from plugins.registry import OPS
from runtime.bundle import StageName

Status = Literal["passed", "failed", "skipped"]
Part = Literal["machine", "export", "ops", "stages", "generate", "cold", "warm", "times"]
#: Who runs our ops: the Python plugin, the C++ library, the library inside the engine, the torch backend, or nobody.
Host = Literal["python", "library", "embedded", "torch", ""]
FORMAT = 1


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the selftest on one bundle, its ops run by one host; ``skip``: steps that were begun before."""

    part: Part
    variant: str
    host: Host = ""
    skip: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was tested.

    ``error`` is a relative L2 and ``bound`` the most it may be; a JSON null among figures is infinite or no number.
    ``tensor``: of those that a stage gives, the one nearest to its bound, or over it. ``last_words``: what TensorRT and
    the process last said.
    """

    part: Part
    variant: str
    host: Host = ""
    name: str
    status: Status
    stage: str | None = None
    op: str | None = None
    tensor: str | None = None
    error: float | None = None
    bound: float | None = None
    seconds: float | None = None
    figures: dict[str, float | None] = {}
    detail: str = ""
    last_words: list[str] = []

    @property
    def share(self) -> float:
        """The error as a share of its bound."""
        return 0.0 if self.error is None or not self.bound else self.error / self.bound


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the selftest ran: its first GPU, as ``turbotrt doctor`` describes it, and the versions of what is here."""

    gpu: str | None
    sm: int | None = None
    exports: tuple[str, ...] = ()
    gpus: int = 0
    memory_bytes: int | None = None
    free_bytes: int | None = None
    cuda: str | None = None
    driver: str | None = None
    why_not: str | None = None
    system: str
    python: str
    packages: dict[str, str]
    plugin_library: str | None = None


class Report(msgspec.Struct, kw_only=True):
    """The whole: what a reader of the JSON file gets. ``ended`` says how it came to its end."""

    format: int = FORMAT
    version: str
    command: str
    began: str
    machine: Machine | None = None
    gpu: str | None = None
    backend: str | None = None
    notes: list[str] = []
    rows: list[Row] = []
    seconds: float = 0.0
    ended: Literal["running", "finished", "interrupted", "stopped"] = "running"

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.status == "failed"]

    @property
    def passed(self) -> bool:
        """Whether it came to its end, something beside the look around passed, and nothing failed."""
        done = any(row.status == "passed" and row.part != "machine" for row in self.rows)
        return self.ended == "finished" and not self.failed and done

    def json(self) -> bytes:
        """The file's content; ``passed`` stands first."""
        plain = {"passed": self.passed, **msgspec.to_builtins(self)}
        return msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n"


def located(row: Row, before: Sequence[Row]) -> Row:
    """A failed row whose op nothing named, with what the plans of its bundle's ops alone did before."""
    ops = [one for one in before if one.part == "ops" and one.variant == row.variant]
    elsewhere = row.part in ("ops", "export") or row.stage not in (None, "block")  # the ops are the block's
    if row.status != "failed" or elsewhere or row.op is not None or not ops:
        return row
    wrong = [one for one in ops if one.status == "failed"]
    said = f"alone, its plan fails too: {wrong[0].name}" if wrong else "alone, the plan of every op is right"
    detail = "\n".join(filter(None, (row.detail, said)))
    return msgspec.structs.replace(row, op=wrong[0].op if wrong else None, detail=detail)


def named_op(text: str) -> str | None:
    """The op that a message names, the longest name first: one may be the beginning of another."""
    return next((op for op in sorted(OPS, key=len, reverse=True) if op in text), None)


def named_stage(text: str) -> str | None:
    """The stage whose engine a message names."""
    return next((name for name in re.findall(r"(\w+)\.engine", text) if name in get_args(StageName)), None)
