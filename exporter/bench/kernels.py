"""``turbotrt bench kernels`` and ``bench step``: a model's block through its compiled plans on the GPU at hand.

A Hopper GPU also runs an RTX part's kernels, as a proxy (proxy.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.table import Table

from exporter.bench.block_graph import OpCall, block_graph, call_of, our_op
from exporter.bench.device import median_ms, prepared
from exporter.bench.launches import launch_times, multiplying, predicted_ms
from exporter.bench.measured import LaunchTime
from exporter.bench.proxy import Bench, bench_on
from exporter.bench.roofline import limit
from exporter.bench.synthetic import block_inputs, block_weights
from exporter.gpus import GpuSpec
from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from plugins.torch_op import run_plan

Measure = Callable[[OpCall, Sequence[torch.Tensor]], float]
_STEPS = 3  # timed, after one that is not


class PlanInterpreter(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs a block's graph on CUDA, our ops by the plans that a bench gives."""

    def __init__(self, graph: torch.fx.GraphModule, bench: Bench):
        super().__init__(graph)
        self.bench = bench

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (op := our_op(target)) is None or self.bench.host is None:
            return super().call_function(target, args, kwargs)
        inputs = [tensor.contiguous() for tensor in args[: len(op.inputs)]]
        outputs = run_plan(self.bench.plan(call_of(op, args)), inputs)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]


class MeasuringInterpreter(PlanInterpreter):
    """The same, and measures each distinct op call once, on the inputs it really gets."""

    def __init__(self, graph: torch.fx.GraphModule, bench: Bench, measure: Measure):
        super().__init__(graph, bench)
        self.measure = measure
        self.times: dict[OpCall, float] = {}
        self.counts: dict[OpCall, int] = {}

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (op := our_op(target)) is not None:
            call = call_of(op, args)
            self.counts[call] = self.counts.get(call, 0) + 1
            if call not in self.times:
                self.times[call] = self.measure(call, args[: len(op.inputs)])
        return super().call_function(target, args, kwargs)


def kernel_row(call: OpCall, count: int, launches: Sequence[LaunchTime], gpu: GpuSpec) -> dict[str, Any]:
    """One op's figures; ``share`` is of the GPU's roofline, ``tb_s`` and ``tops`` of needed bytes and operations."""
    needs, ms = call.cost, sum(launch.ms for launch in launches)
    best = limit(needs, gpu)
    return {
        "op": call.op.name,
        "dims": call.dims,
        "attributes": dict(call.attributes),
        "count": count,
        "ms": ms,
        "launches": [msgspec.to_builtins(launch) for launch in launches],
        "tops": needs.total / ms / 1e9,
        "tb_s": needs.bytes / ms / 1e9,
        "bound": best.bound,
        "limit_ms": best.ms,
        "share": best.ms / ms,
    }


def _add_models(rows: Sequence[dict[str, Any]], calls: Sequence[OpCall], bench: Bench) -> None:
    """Each op's ``rate`` and ``predicted_ms`` of its last launch, None where there is no model of that."""
    found = multiplying({call: bench.plan(call) for call in calls}, bench.host or bench.sm, bench.rates)
    for row, call in zip(rows, calls, strict=True):
        row["rate"] = row["predicted_ms"] = None
        if call in found:
            rate = found[call].rate
            row["rate"], row["predicted_ms"] = rate, predicted_ms(call.cost.total, rate, bench.sm_clocks)


def bench_kernels(model: ModelSpec, gpu: GpuSpec, options: BlockOptions) -> dict[str, Any]:
    """Each op of the block at the model's default size: median ms, TOPS, TB/s, share of the limit.

    ``fp8_as_fp16_ms``: on a proxy, the op with an FP16 product in each FP8 product's place, where it has some.
    """
    bench = bench_on(gpu)
    launches: dict[OpCall, list[LaunchTime]] = {}
    stand_ins: dict[OpCall, float] = {}

    def measure(call: OpCall, inputs: Sequence[torch.Tensor]) -> float:
        launches[call] = launch_times(bench.plan(call), lambda plan: median_ms(prepared(plan, inputs)[0]))
        if (stand_in := bench.stand_in_plan(call)) is not None:
            stand_ins[call] = median_ms(prepared(stand_in, inputs)[0])
        return sum(launch.ms for launch in launches[call])

    graph = MeasuringInterpreter(block_graph(model, options, model.tokens()), bench, measure)
    with torch.inference_mode():
        inputs = block_inputs(model, 0, "cuda", model.latent_shape())
        run_graph(graph, inputs, block_weights(model, options, 1, "cuda"))
    rows = [kernel_row(call, graph.counts[call], found, bench.limits) for call, found in launches.items()]
    _add_models(rows, list(launches), bench)
    for row, call in zip(rows, launches, strict=True):
        row["fp8_as_fp16_ms"] = stand_ins.get(call)
    block = sum(row["count"] * row["ms"] for row in rows)
    return {**_head(model, bench, options), "kernels": rows, "block_ms": block, "blocks_ms": model.layers * block}


def run_graph(
    graph: torch.fx.Interpreter, inputs: Sequence[torch.Tensor], weights: dict[str, torch.Tensor]
) -> torch.Tensor:
    """x after one block; a value is freed after its last use, as an engine reuses its memory."""
    return graph.run(list(inputs), weights)


def bench_step(model: ModelSpec, gpu: GpuSpec, options: BlockOptions) -> dict[str, Any]:
    """All blocks of one step, each with its own weights: median ms of three after a warm-up, and peak device memory."""
    bench = bench_on(gpu)
    graph = PlanInterpreter(block_graph(model, options, model.tokens()), bench)
    with torch.inference_mode():
        layers = [block_weights(model, options, layer, "cuda") for layer in range(model.layers)]
        torch.cuda.empty_cache()
        weights = torch.cuda.memory_allocated()
        x, *rest = block_inputs(model, 0, "cuda", model.latent_shape())

        def step() -> torch.Tensor:
            state = x
            for layer in layers:
                state = run_graph(graph, [state, *rest], layer)
            return state

        finite = bool(step().isfinite().all())
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(_STEPS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    if not finite:
        raise ArithmeticError(f"{model.name}: a step on random weights gave values that are not finite")
    peak = torch.cuda.max_memory_allocated()
    found = {"step_ms": median(times), "all_ms": times, "weights_bytes": weights, "peak_bytes": peak}
    return {**_head(model, bench, options), **found}


def _head(model: ModelSpec, bench: Bench, options: BlockOptions) -> dict[str, Any]:
    kernels = "" if bench.host is None else f", kernels of sm_{bench.sm} from their PTX"
    return {
        "gpu": bench.gpu.name,
        "model": model.name,
        "source": f"turbotrt bench on {bench.device}, torch {torch.__version__}{kernels}",
        "proxy": bench.facts,
        "tokens": model.tokens(),
        "attention": options.attention,
        "topk_milli": options.topk_milli,
        "linear": options.linear,
    }


def proxy_lines(found: Mapping[str, Any]) -> list[str]:
    """What a reader of proxied figures must know; nothing where the GPU itself ran."""
    proxy = found["proxy"]
    if proxy is None:
        return []
    limits = proxy["limits"]
    return [
        f"PROXY: kernels of sm_{proxy['kernels_of_sm']} from their PTX on {proxy['device']}, no {found['gpu']}.",
        *(f"  left out: {line}" for line in proxy["leaves_out"]),
        "  FP8 as FP16: an FP16 product of as many registers in each FP8 product's place, with values that are wrong",
        f"  limits: INT8 {limits['int8']:.0f}, FP16 {limits['fp16']:.0f} T/s, {limits['bandwidth']:.0f} GB/s "
        f"({limits['source']})",
    ]


def show_kernels_bench(found: dict[str, Any], console: Console) -> None:
    """The table, slowest first."""
    title = f"{found['model']}, L = {found['tokens']:,}: {found['source']}"
    table = Table(title=title, caption=f"a block {found['block_ms']:.2f} ms, all blocks {found['blocks_ms']:.0f} ms")
    for heading in ("op", "dims"):
        table.add_column(heading, no_wrap=heading == "op")
    of = "of limit" if found["proxy"] is None else "of mma.sync"
    for heading in ("×", "ms", "FP8 as FP16 ms", "TOPS", "TB/s", "bound", of, "last kernel ms", "by model"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(found["kernels"], key=operator.itemgetter("ms"), reverse=True):
        dims = " ".join(f"{name}={value}" for name, value in (row["dims"] | row["attributes"]).items())
        table.add_row(
            row["op"],
            dims,
            str(row["count"]),
            f"{row['ms']:.3f}",
            "–" if row["fp8_as_fp16_ms"] is None else f"{row['fp8_as_fp16_ms']:.3f}",
            f"{row['tops']:.0f}" if row["tops"] else "–",
            f"{row['tb_s']:.2f}",
            row["bound"],
            f"{row['share']:.0%}",
            f"{row['launches'][-1]['ms']:.3f}",
            "–" if row["predicted_ms"] is None else f"{row['predicted_ms']:.3f}",
        )
    console.print(table)
    for line in proxy_lines(found):
        console.print(line)
