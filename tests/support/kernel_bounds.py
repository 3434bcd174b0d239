"""Bounds on every kernel of the real models' blocks, by op, kernel and SM: kernel_bounds.json and how it is made.

``python -m tests.support.kernel_bounds`` compiles everything again, prints the table and rewrites the file: run it
after a change of kernels or configs and read the difference before committing it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

from exporter.bench.block_graph import OpCall, block_calls
from exporter.bench.kernel_table import kernel_rows, show_kernels
from exporter.models import MODELS
from exporter.networks.dit.options import Attention, BlockOptions
from exporter.networks.weight_spec import LinearMode
from plugins.sms import SMS

FILE = Path(__file__).with_suffix(".json")
WORKERS = 2

Bounds = dict[str, dict[str, int]]


@cache
def distinct_calls() -> tuple[OpCall, ...]:
    """The op calls of all real models' blocks, under all options, that give different plans."""
    found: dict[tuple[Any, ...], OpCall] = {}
    for model in MODELS.values():
        if model.name == "wan-tiny":
            continue
        for attention in get_args(Attention):
            for linear in get_args(LinearMode):
                for call in block_calls(model, BlockOptions(attention, linear=linear)):
                    static = tuple((name, size) for name, size in call.dims.items() if name not in call.op.dynamic)
                    found.setdefault((call.op.name, static, call.attributes), call)
    return tuple(found.values())


def _rows(part: tuple[Sequence[OpCall], int]) -> list[dict[str, Any]]:
    return kernel_rows(*part)


def all_rows() -> list[dict[str, Any]]:
    """A row for each kernel and SM, compiled in two processes; the parts are small so that both end together.

    Calls of one op share kernels, which are looked at once where they fall into one part.
    """
    calls = sorted(distinct_calls(), key=lambda call: call.op.name)
    third = -(-len(calls) // 3)
    parts = [(calls[start : start + third], sm) for sm in SMS for start in range(0, len(calls), third)]
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(_rows, parts) for row in rows]


def rows_of(sm: int) -> list[dict[str, Any]]:
    """A row for each kernel of an SM, compiled in this process."""
    return kernel_rows(sorted(distinct_calls(), key=lambda call: call.op.name), sm)


def bounds(rows: list[dict[str, Any]]) -> Bounds:
    """``"op kernel sm"`` → the most registers, stack, shared bytes and the fewest resident warps of all sizes."""
    found: Bounds = {}
    for row in rows:
        for op in row["ops"]:
            worst = found.setdefault(f"{op} {row['name']} {row['sm']}", {"warps_per_sm": row["warps_per_sm"]})
            for field, name in (("registers", "registers"), ("stack", "stack_bytes"), ("shared", "shared_bytes")):
                worst[field] = max(worst.get(field, 0), row[name])
            worst["warps_per_sm"] = min(worst["warps_per_sm"], row["warps_per_sm"])
    return dict(sorted(found.items()))


def committed() -> Bounds:
    """The committed table."""
    found: Bounds = json.loads(FILE.read_text())
    return found


def write() -> None:
    """Print the rows and rewrite the committed table."""
    from exporter.cli.command import console

    rows = all_rows()
    for sm in SMS:
        show_kernels([row for row in rows if row["sm"] == sm], f"sm_{sm}", console())
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in bounds(rows).items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write()
