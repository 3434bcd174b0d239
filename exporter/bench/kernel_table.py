"""Static facts about every kernel of the models' blocks, read off the cubins (``turbotrt kernels``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from exporter.bench.block_graph import OpCall, block_calls
from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from plugins.plan import KernelImage, decode
from plugins.sass.report import reports

_BYTES = {"stack": "stack_bytes", "shared": "shared_bytes"}


def kernel_rows(calls: Iterable[OpCall], sm: int) -> list[dict[str, Any]]:
    """One row a distinct cubin: the ops that launch it, and the fields of ``plugins.sass.report.KernelReport``."""
    kernels: dict[bytes, KernelImage] = {}
    ops: dict[bytes, list[str]] = {}
    for call in calls:
        for kernel in decode(call.plan(sm)).kernels:
            kernels.setdefault(kernel.cubin, kernel)
            users = ops.setdefault(kernel.cubin, [])
            if call.op.name not in users:
                users.append(call.op.name)
    rows = []
    for users, found in zip(ops.values(), reports(list(kernels.values()), sm), strict=True):
        facts = {_BYTES.get(name, name): value for name, value in asdict(found).items()}
        rows.append({"ops": users, "sm": sm, **facts})
    return rows


def block_kernels(model: ModelSpec, options: BlockOptions, sm: int) -> list[dict[str, Any]]:
    """The rows of a model's block, compiled for an SM."""
    return kernel_rows(block_calls(model, options), sm)


def show_kernels(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """The table."""
    table = Table(title=title, caption="local: local-memory instructions in main loops / all loops / the kernel")
    for heading in ("kernel", "ops", "MMA in main loops"):
        table.add_column(heading, overflow="fold")
    for heading in ("registers", "stack", "shared KiB", "warps/SM", "occupancy", "local"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            ", ".join(row["ops"]),
            " ".join(f"{name}×{n}" for name, n in row["main_mma"].items()),
            str(row["registers"]),
            str(row["stack_bytes"]),
            f"{row['shared_bytes'] / 1024:.1f}",
            str(row["warps_per_sm"]),
            f"{row['occupancy']:.0%}",
            f"{row['main_local']}/{row['loop_local']}/{row['local']}",
        )
    console.print(table)
