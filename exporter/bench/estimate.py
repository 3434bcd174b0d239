"""``turbotrt estimate``: a block's ops and a step on any GPU of the table, from measurements on another one.

RTX parts are estimated by proxy (by_proxy.py), the others from the H200 (by_h200.py). The steps' time stands beside
what TurboDiffusion's authors publish where both are of the same number of steps.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from exporter.bench import published
from exporter.bench.block_graph import block_calls
from exporter.bench.by_h200 import REFERENCE, h200_estimates
from exporter.bench.by_proxy import proxy_estimates
from exporter.bench.measured import measured_step
from exporter.bench.op_estimate import OpEstimate
from exporter.bench.proxy import LEAVES_OUT, RTX
from exporter.gpus import GPUS, GpuSpec
from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions


def estimate_block(
    model: ModelSpec, gpu: GpuSpec, options: BlockOptions, length: int | None = None
) -> list[OpEstimate]:
    """Every distinct op call of a model's block at L = ``length``, its default size's if None."""
    calls = block_calls(model, options, length)
    return (proxy_estimates if gpu.cubin_sm in RTX else h200_estimates)(calls, gpu)


def step_ms(model: ModelSpec, gpu: GpuSpec, options: BlockOptions, length: int | None = None) -> float:
    """Estimated ms of a step's blocks."""
    return model.layers * sum(e.count * e.ms for e in estimate_block(model, gpu, options, length))


def estimate(model: ModelSpec, gpu: GpuSpec, options: BlockOptions, steps: int = published.STEPS) -> dict[str, Any]:
    """What ``estimate --json`` prints. Times in ms, sizes in bytes; a step is all blocks, without embed and head."""
    estimates = estimate_block(model, gpu, options)
    block = sum(e.count * e.ms for e in estimates)
    unmeasured = sum(e.count * e.ms for e in estimates if e.basis != "measured")
    return {
        "estimate": True,
        "model": model.name,
        "gpu": gpu.name,
        "tokens": model.tokens(),
        "kernels": [e.row for e in estimates],
        "block_ms": block,
        "step_ms": model.layers * block,
        "step_limit_ms": model.layers * sum(e.count * e.limit.ms for e in estimates),
        "steps": steps,
        "steps_seconds": steps * model.layers * block / 1e3,
        "published_seconds": _published(model, gpu, options, steps),
        "unmeasured_share": unmeasured / block,
        **(_proxy_facts(gpu) if gpu.cubin_sm in RTX else _h200_facts(model, options)),
    }


def _published(model: ModelSpec, gpu: GpuSpec, options: BlockOptions, steps: int) -> float | None:
    """The authors' seconds for the same, None where they publish none."""
    same = (gpu.name, steps, options) == (published.GPU, published.STEPS, BlockOptions())
    return published.SECONDS.get(model.name) if same else None


def _proxy_facts(gpu: GpuSpec) -> dict[str, Any]:
    return {"by_proxy": True, "leaves_out": list(LEAVES_OUT[gpu.cubin_sm])}


def _h200_facts(model: ModelSpec, options: BlockOptions) -> dict[str, Any]:
    """How far off the same estimate is on the H200; only the default options were ever measured as a whole."""
    known = measured_step(REFERENCE, model.name) if options == BlockOptions() else None
    predicted = step_ms(model, GPUS[REFERENCE], options)
    return {
        "by_proxy": False,
        "h200_step_ms": predicted,
        "h200_measured_step_ms": known,
        "h200_error": None if known is None else predicted / known - 1,
    }


def _h200_lines(found: dict[str, Any]) -> list[str]:
    error = "no step of this model with these options was measured, so the error is unknown"
    if found["h200_measured_step_ms"] is not None:
        error = (
            f"the same estimate for the H200 gives {found['h200_step_ms']:.0f} ms a step, measured "
            f"{found['h200_measured_step_ms']:.0f} ms: error {found['h200_error']:+.0%}"
        )
    return [
        "measured: by what the op reached on the H200 at the nearest measured size; limit: never measured, the limit "
        f"itself is taken ({found['unmeasured_share']:.0%} of the time above).",
        f"error: the op's worst on the H200 where one measured size is predicted from the others; {error}.",
    ]


def _proxy_lines(found: dict[str, Any]) -> list[str]:
    product = GPUS[found["gpu"]].product
    proxies = [row["proxy"] for row in found["kernels"] if row["proxy"]]
    ran = sorted({f"kernels of sm_{one['kernels_of_sm']} from their PTX on {one['device']}" for one in proxies})
    return [
        f"BY PROXY: nothing was ever executed on a {product}. measured: {' and '.join(ran) or 'nothing yet'}, "
        "carried over by a model of their machine code there and here and by the memories' bandwidths; model: by the "
        f"model alone; limit: neither ({found['unmeasured_share']:.0%} of the time above was not measured). It assumes "
        "the vendor's boost clock.",
        "error: what the model says of the op's last kernel on the proxy, against its measured time there.",
        *(f"  the proxy does not show: {line}" for line in found["leaves_out"]),
    ]


def _steps_line(found: dict[str, Any]) -> str:
    line = f"{found['steps']} steps' blocks: about {found['steps_seconds']:.1f} s"
    if found["published_seconds"] is None:
        return line + "."
    return (
        f"{line}; TurboDiffusion's authors publish {found['published_seconds']:g} s for the DiT in {found['steps']} "
        f"steps on a {GPUS[found['gpu']].product}."
    )


def show_estimate(found: dict[str, Any], console: Console) -> None:
    """The table and the sums."""
    table = Table(title=f"ESTIMATE, not a measurement: {found['model']} on {found['gpu']}, L = {found['tokens']:,}")
    for heading in ("op", "dims"):
        table.add_column(heading, no_wrap=heading == "op")
    for heading in ("×", "GB", "TOP", "bound", "limit ms", "of limit", "ms", "basis", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found["kernels"]:
        table.add_row(
            row["op"],
            " ".join(f"{name}={value}" for name, value in (row["dims"] | row["attributes"]).items()),
            str(row["count"]),
            f"{row['traffic_bytes'] / 1e9:.2f}",
            f"{sum(row['operations'].values()) / 1e12:.2f}",
            row["bound"],
            f"{row['limit_ms']:.3f}",
            f"{row['limit_ms'] / row['ms']:.0%}",
            f"{row['ms']:.3f}",
            row["basis"],
            "–" if row["error"] is None else f"{row['error']:+.0%}",
        )
    console.print(table)
    console.print(
        f"one step's blocks: about {found['step_ms']:.0f} ms (at every limit {found['step_limit_ms']:.0f} ms); "
        + _steps_line(found)
    )
    for line in _proxy_lines(found) if found["by_proxy"] else _h200_lines(found):
        console.print(line)
