"""Static facts about every kernel of the models' blocks, read off the cubins (``turbotrt kernels``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from exporter.bench.block_graph import OpCall, block_calls
from exporter.bench.by_proxy import Known, predicted_on_proxy
from exporter.bench.measured import proxied_ops
from exporter.gpus import GpuSpec
from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from plugins.plan import KernelImage, decode
from plugins.sass.report import reports
from plugins.sms import Rates

_BYTES = {"stack": "stack_bytes", "shared": "shared_bytes"}


def kernel_rows(calls: Iterable[OpCall], sm: int, rates: Rates | None) -> list[dict[str, Any]]:
    """One row a distinct cubin: the ops that launch it, and the fields of ``plugins.sass.report.KernelReport``.

    ``rates``: what the part's SM does in a clock, if known. ``last``: whether it is the last launch of its op, which
    does the products if there are any; ``proxied``: as such measured on a Hopper GPU, and what the model said there.
    """
    kernels: dict[bytes, KernelImage] = {}
    ops: dict[bytes, list[str]] = {}
    last: dict[bytes, list[OpCall]] = {}
    for call in calls:
        plan = decode(call.plan(sm))
        for kernel in plan.kernels:
            kernels.setdefault(kernel.cubin, kernel)
            users = ops.setdefault(kernel.cubin, [])
            if call.op.name not in users:
                users.append(call.op.name)
        last.setdefault(plan.kernels[plan.launches[-1].kernel].cubin, []).append(call)
    known = [one for one in proxied_ops() if one[0].kernels_of_sm == sm]
    rows = []
    for cubin, found in zip(kernels, reports(list(kernels.values()), sm, rates), strict=True):
        facts = {_BYTES.get(name, name): value for name, value in asdict(found).items()}
        proxied = [row for call in last.get(cubin, []) for row in _proxied(call, known)]
        rows.append({"ops": ops[cubin], "sm": sm, **facts, "last": cubin in last, "proxied": proxied})
    return rows


def _proxied(call: OpCall, known: Sequence[Known]) -> list[dict[str, Any]]:
    return [
        {
            "op": entry.op,
            "dims": entry.dims,
            "ms": entry.launches[-1].ms,
            "predicted_ms": predicted_on_proxy(proxy, entry),
        }
        for proxy, entry in known
        if entry.rate and (entry.op, entry.dims, entry.attributes) == (call.op.name, call.dims, dict(call.attributes))
    ]


def block_kernels(model: ModelSpec, options: BlockOptions, gpu: GpuSpec) -> list[dict[str, Any]]:
    """The rows of a model's block, compiled for a GPU."""
    return kernel_rows(block_calls(model, options), gpu.cubin_sm, gpu.rates)


_CAPTION = (
    "local: local-memory instructions in main loops / all loops / the kernel. By a model of the main loop's machine "
    "code and the SM's published rates: cycles of one iteration by all resident warps, the share for which the tensor "
    "cores are busy, the busiest other unit. proxy: ms on a Hopper GPU by that model / measured there"
)


def _model_cells(model: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Cycles, the tensor cores' share, and the longest other unit with its own."""
    if model is None:
        return "", "", ""
    others = {unit: cycles for unit, cycles in model["cycles"].items() if unit not in ("tensor", "ports")}
    longest = max(others, key=lambda unit: others[unit])
    share = f"{others[longest] / model['iteration']:.0%}"
    return f"{model['iteration']:.0f}", f"{model['share']:.0%}", f"{longest} {share}"


def show_kernels(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """The table."""
    table = Table(title=title, caption=_CAPTION)
    for heading in ("kernel", "ops", "MMA in main loops"):
        table.add_column(heading, overflow="fold")
    figures = (
        "registers",
        "stack",
        "shared KiB",
        "warps/SM",
        "occupancy",
        "local",
        "cycles",
        "tensor",
        "next",
        "proxy",
    )
    for heading in figures:
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
            *_model_cells(row["model"]),
            "\n".join(f"{one['predicted_ms']:.2f}/{one['ms']:.2f}" for one in row["proxied"]),
        )
    console.print(table)
