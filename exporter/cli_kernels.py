"""``turbotrt kernels``, ``estimate``, ``tune``, ``bench kernels`` and ``bench step``: what the kernels are and give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.command import AttentionOption, Command, GpuOption, JsonOption, ModelOption, TopkOption, console
from exporter.spec import ExportSpec, export_spec

if TYPE_CHECKING:
    from exporter.stages import BlockOptions


def _spec(model: str, gpu: str, attention: str, topk: str | None) -> tuple[ExportSpec, BlockOptions]:
    """The validated choices. INT8 Linears only: the bf16 ones are the builder's kernels, not ours."""
    from exporter.stages import BlockOptions

    spec = export_spec(model=model, gpu=gpu, attention=attention, topk=topk)
    return spec, BlockOptions(spec.attention, spec.topk_milli, spec.linear)


def kernels(
    model: ModelOption,
    gpu: GpuOption,
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a block's kernels as compiled for a GPU: tensor-core instructions, registers, spills, occupancy.

    It is read from the machine code; no GPU is needed.

    Example: turbotrt kernels --model wan2.1-14b-720p --gpu rtx5090
    """
    spec, options = _spec(model, gpu, attention, topk)
    from exporter.kernel_table import block_kernels, show_kernels

    rows = block_kernels(spec.model, options, spec.gpu.cubin_sm)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        show_kernels(rows, f"{spec.model.name}, a block's kernels for sm_{spec.gpu.cubin_sm}", console())


def estimate(
    model: ModelOption,
    gpu: GpuOption,
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the time of each op and of a step on a GPU: rooflines over the efficiency measured on the H200.

    It is an estimate, and says how far it is off on the H200, where that was measured. No GPU is needed.

    Example: turbotrt estimate --model wan2.1-14b-720p --gpu rtx5090
    """
    spec, options = _spec(model, gpu, attention, topk)
    from exporter.estimate import estimate as estimated
    from exporter.estimate import show_estimate

    found = estimated(spec.model, spec.gpu, options)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show_estimate(found, console())


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

    Example: turbotrt tune --model wan2.1-14b-720p --gpu h200
    """
    spec, options = _spec(model, gpu, attention, topk)
    from exporter import tune as tuner
    from plugins import configs

    tuned = tuner.tune(spec.model, spec.gpu, options)
    path = out or configs.FILE
    tuner.show_tuned(tuned, console())
    tuner.write(path, tuner.updated(configs.table(), tuned, spec.gpu.cubin_sm))
    typer.echo(f"{path}: {sum(one.better for one in tuned)} of {len(tuned)} sizes changed.")


def bench_kernels(
    model: ModelOption,
    gpu: GpuOption,
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time each op of a block on the GPU at hand: ms, TOPS, TB/s and the share of the limit.

    Each runs as compiled for an engine, on the inputs it gets in a block of Gaussian data at the model's default size.

    Example: turbotrt bench kernels --model wan2.1-14b-720p --gpu h200 --json
    """
    spec, options = _spec(model, gpu, attention, topk)
    from exporter import bench_kernels as bench

    found = bench.bench_kernels(spec.model, spec.gpu, options)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        bench.show_kernels_bench(found, console())


def bench_step(
    model: ModelOption,
    gpu: GpuOption,
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time all blocks of one step on the GPU at hand, each with its own random weights, and the peak device memory.

    Example: turbotrt bench step --model wan2.1-14b-720p --gpu h200
    """
    spec, options = _spec(model, gpu, attention, topk)
    from exporter import bench_kernels as bench

    found = bench.bench_step(spec.model, spec.gpu, options)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    times = ", ".join(f"{ms:.1f}" for ms in found["all_ms"])
    typer.echo(f"{found['model']}, L = {found['tokens']:,}: {found['source']}")
    typer.echo(f"a step's blocks: {found['step_ms']:.1f} ms (median of {times})")
    typer.echo(
        f"peak device memory {found['peak_bytes'] / 2**30:.2f} GiB, weights {found['weights_bytes'] / 2**30:.2f}"
    )


def register(app: typer.Typer, bench_app: typer.Typer) -> None:
    """Add the commands to the command line, and the two benchmarks to its ``bench`` group."""
    for command in (kernels, estimate, tune):
        app.command(cls=Command)(command)
    bench_app.command("kernels", cls=Command)(bench_kernels)
    bench_app.command("step", cls=Command)(bench_step)
