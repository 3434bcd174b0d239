"""The documents' tables of RTX parts: what was measured by proxy, and estimated from it.

``python -m tests.support.estimates RUN.json…`` takes runs of ``turbotrt bench kernels|step --json`` over into
exporter/bench/measured.json and rewrites the tables; without files it rewrites them alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from exporter.bench import measured, published
from exporter.bench.by_proxy import predicted_on_proxy
from exporter.bench.estimate import estimate
from exporter.bench.proxy import proxy_limits
from exporter.bench.roofline import limit
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.networks.dit.options import BlockOptions
from runtime.atomic import write_atomic
from tests.support.paths import ROOT

GPU = GPUS[published.GPU]
BLOCK = "wan2.1-14b-720p"


def steps_table() -> list[str]:
    """Three steps of each model beside the published ones."""
    lines = [
        f"| blocks of {published.STEPS} steps | RTX 5090, estimated by proxy | TurboDiffusion's authors publish |",
        "|---|---|---|",
    ]
    for name, seconds in published.SECONDS.items():
        found = estimate(MODELS[name], GPU, BlockOptions())
        lines.append(f"| {name} | {found['steps_seconds']:.1f} s | {seconds:.1f} s |")
    return lines


def proxy_table() -> list[str]:
    """Each op of a block that was measured and takes a while: on the proxy, by the model there, on the part."""
    lines = [
        "| op | on the proxy | of its limit | last kernel ms | by model | RTX 5090, estimated ms | of its limit |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {(row["op"], *row["dims"].values()): row for row in estimate(MODELS[BLOCK], GPU, BlockOptions())["kernels"]}
    for proxy, entry in measured.proxied_ops():
        row = rows.get((entry.op, *entry.dims.values()))
        if row is None or proxy.kernels_of_sm != GPU.cubin_sm or entry.ms < 0.1:
            continue
        lines.append("| " + " | ".join(_cells(proxy, entry, row["ms"], row["limit_ms"])) + " |")
    return lines


def _cells(proxy: measured.Proxy, entry: measured.Measured, ms: float, limit_ms: float) -> list[str]:
    needs, predicted = entry.cost, predicted_on_proxy(proxy, entry)
    best = limit(needs, proxy_limits(proxy.device).spec)
    rate = f"{needs.total / entry.ms / 1e9:.0f} TOPS" if needs.total else f"{needs.bytes / entry.ms / 1e9:.2f} TB/s"
    dims = "×".join(f"{size:,}" for size in entry.dims.values())
    return [
        f"{entry.op} {dims}",
        f"{entry.ms:.2f} ms, {rate}",
        f"{100 * best.ms / entry.ms:.0f} %",
        f"{entry.launches[-1].ms:.2f}" if predicted else "",
        f"{predicted:.2f}" if predicted else "",
        f"{ms:.2f}",
        f"{100 * limit_ms / ms:.0f} %",
    ]


#: Name of a table, in the documents between ``<!-- name -->`` and ``<!-- end -->``, and what makes its lines.
TABLES: Mapping[str, Callable[[], list[str]]] = {"three steps": steps_table, "by proxy": proxy_table}
PLACES: Mapping[str, tuple[str, ...]] = {"README.md": ("three steps",), "docs/performance.md": tuple(TABLES)}


def parts(text: str, name: str) -> tuple[str, str, str]:
    """A document before, in and after a table."""
    before, start, rest = text.partition(f"<!-- {name} -->\n")
    inside, end, after = rest.partition("<!-- end -->")
    if not start or not end:
        raise ValueError(f"the document has no table {name!r}")
    return before + start, inside, end + after


def main(files: Sequence[str]) -> None:
    """Take the runs over and rewrite the tables."""
    content: Sequence[measured.Run] = measured.runs()
    for file in files:
        content = measured.taken_over(content, Path(file).read_bytes())
    write_atomic(measured.FILE, measured.dumped(content).encode())
    measured.runs.cache_clear()
    made = {name: "\n".join(["", *table(), "", ""]) for name, table in TABLES.items()}
    for place, names in PLACES.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        for name in names:
            before, _, after = parts(text, name)
            text = before + made[name] + after
        write_atomic(ROOT / place, text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
