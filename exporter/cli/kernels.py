"""``turbotrt kernels``, ``estimate``, ``tune``, ``bench kernels`` and ``bench step``: what the kernels are and give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exporter.cli.options import AttentionOption, GpuOption, JsonOption, ModelOption, TopkOption
from exporter.progress import RichProgress
from exporter.spec import ExportSpec, export_spec
from exporter.terminal import console, say
from runtime.atomic import check_place

if TYPE_CHECKING:
    from exporter.networks.dit.options import BlockOptions


def _spec(model: str, gpu: str, attention: str, topk: str | None) -> tuple[ExportSpec, BlockOptions]:
    """The validated choices. INT8 Linears only: the bf16 ones are the builder's kernels, not ours."""
    from exporter.networks.dit.options import BlockOptions

    spec = export_spec(model=model, gpu=gpu, attention=attention, topk=topk)
    return spec, BlockOptions(spec.attention, spec.topk_milli, spec.linear)


def _reporting(
    measure: Callable[[ExportSpec, BlockOptions], Any], show: Callable[[ExportSpec, Any], None]
) -> Callable[..., None]:
    """A command named and documented as ``measure``: shows what it gives, or prints it as JSON."""

    def command(
        model: ModelOption,
        gpu: GpuOption,
        attention: AttentionOption = "sagesla",
        topk: TopkOption = None,
        as_json: JsonOption = False,
    ) -> None:
        spec, options = _spec(model, gpu, attention, topk)
        found = measure(spec, options)
        if as_json:
            say(json.dumps(found, indent=2))
        else:
            show(spec, found)

    command.__doc__, command.__name__ = measure.__doc__, measure.__name__
    return command


def kernels(spec: ExportSpec, options: BlockOptions) -> Any:
    """Show a block's kernels as compiled for a GPU: tensor-core instructions, registers, spills, occupancy.

    It is read from the machine code, and so is a model of each main loop of mma.sync: cycles of each unit, which one
    binds, the tensor cores' share. Its prediction for a Hopper GPU stands beside what was measured there.

    Example: turbotrt kernels --model wan2.1-14b-720p --gpu rtx5090
    """
    from exporter.bench.kernel_table import block_kernels

    return block_kernels(spec.model, options, spec.gpu)


def _show_kernels(spec: ExportSpec, found: Any) -> None:
    from exporter.bench.kernel_table import show_kernels

    show_kernels(found, f"{spec.model.name}, a block's kernels for sm_{spec.gpu.cubin_sm}", console())


def estimate(
    model: ModelOption,
    gpu: GpuOption,
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Sampling steps to add up. TurboDiffusion's authors publish times of three.")
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Estimate the time of each op and of a step on a GPU that is not here.

    RTX parts: their kernels' times on a Hopper GPU, carried over by a model of their machine code. Others: rooflines
    over the efficiency measured on the H200. It says how far off it is where that was measured. No GPU is needed.

    Example: turbotrt estimate --model wan2.1-14b-720p --gpu rtx5090
    """
    spec, options = _spec(model, gpu, attention, topk)
    from exporter.bench import estimate as estimator

    found = estimator.estimate(spec.model, spec.gpu, options, steps)
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        estimator.show_estimate(found, console())


def bench_kernels(spec: ExportSpec, options: BlockOptions) -> Any:
    """Time each op of a block on the GPU at hand: ms, TOPS, TB/s and the share of the limit.

    Each runs as compiled for an engine, on the inputs it gets in a block of Gaussian data at the model's default size.
    JSON has each launch of it. What a model of the last one's machine code predicts stands beside its time.

    On a Hopper GPU an RTX part's kernels run from their PTX: a proxy, which says what it leaves out.

    Example: turbotrt bench kernels --model wan2.1-14b-720p --gpu h200 --json
    """
    from exporter.bench import kernels as bench

    return bench.bench_kernels(spec.model, spec.gpu, options)


def _show_bench_kernels(_spec: ExportSpec, found: Any) -> None:
    from exporter.bench.kernels import show_kernels_bench

    show_kernels_bench(found, console())


def bench_step(spec: ExportSpec, options: BlockOptions) -> Any:
    """Time all blocks of one step on the GPU at hand, each with its own random weights, and the peak device memory.

    On a Hopper GPU an RTX part's kernels run from their PTX: a proxy, which says what it leaves out.

    Example: turbotrt bench step --model wan2.1-14b-720p --gpu h200
    """
    from exporter.bench import kernels as bench

    return bench.bench_step(spec.model, spec.gpu, options)


def _show_bench_step(_spec: ExportSpec, found: Any) -> None:
    times = ", ".join(f"{ms:.1f}" for ms in found["all_ms"])
    say(f"{found['model']}, L = {found['tokens']:,}: {found['source']}")
    say(f"a step's blocks: {found['step_ms']:.1f} ms (median of {times})")
    say(f"peak device memory {found['peak_bytes'] / 2**30:.2f} GiB, weights {found['weights_bytes'] / 2**30:.2f}")
    from exporter.bench.kernels import proxy_lines

    for line in proxy_lines(found):
        say(line)


def tune(
    model: ModelOption,
    gpu: GpuOption,
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the table goes. [dim]\\[default: plugins/configs.json, which exports read][/]"
        ),
    ] = None,
) -> None:
    """Measure the legal launch configs at a model's sizes on the GPU at hand, and keep the fastest for exports.

    An RTX part is tuned on a Hopper GPU too, among the configs that the part itself can run.

    Example: turbotrt tune --model wan2.1-14b-720p --gpu h200
    """
    spec, options = _spec(model, gpu, attention, topk)
    from exporter.bench import tune as tuner
    from plugins import configs

    path = out or configs.FILE
    check_place(path)
    tuned = tuner.tune(spec.model, spec.gpu, options, RichProgress())
    tuner.show_tuned(tuned, console())
    tuner.write(path, tuner.updated(configs.table(), tuned, spec.gpu.cubin_sm))
    say(f"{path}: {sum(one.better for one in tuned)} of {len(tuned)} sizes changed.")


#: What this file adds to the command line, and to its ``bench`` group.
COMMANDS: Mapping[str, Callable[..., None]] = {
    "kernels": _reporting(kernels, _show_kernels),
    "estimate": estimate,
    "tune": tune,
}
BENCHMARKS: Mapping[str, Callable[..., None]] = {
    "kernels": _reporting(bench_kernels, _show_bench_kernels),
    "step": _reporting(bench_step, _show_bench_step),
}
