"""What ``turbotrt list`` shows: models and GPUs as plain rows, and as tables."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from exporter.bundle.vram import vram_estimate
from exporter.cli.plugin_host import plugins_here, plugins_line
from exporter.gpus import GPUS, GpuSpec
from exporter.models import MODELS, ModelSpec
from exporter.networks.dit.weights import packed_bytes


def model_row(model: ModelSpec) -> dict[str, Any]:
    """Facts about a model; the weights' bytes are of one expert, INT8."""
    return {
        "name": model.name,
        "size": f"{model.size[0]}x{model.size[1]}x{model.frames}",
        "tokens": model.tokens(),
        "max_tokens": model.max_tokens,
        "layers": model.layers,
        "dim": model.dim,
        "steps": model.steps,
        "experts": list(model.experts),
        "weights_bytes": packed_bytes(model),
        "vram_estimate_bytes": vram_estimate(model),
    }


def gpu_row(gpu: GpuSpec) -> dict[str, Any]:
    """Facts about a GPU and what an export for it needs on this machine."""
    return {
        "name": gpu.name,
        "product": gpu.product,
        "sm": gpu.sm,
        "cubin_sm": gpu.cubin_sm,
        "flavour": gpu.flavour,
        "vram_gib": gpu.vram_gib,
        "int8_tops": gpu.int8,
        "fp8_tflops": gpu.fp8,
        "fp16_tflops": gpu.fp16,
        "bandwidth_gb_s": gpu.bandwidth,
        "needs": needs(gpu),
    }


def needs(gpu: GpuSpec) -> str:
    """Where engines for this GPU can be built, seen from this machine; finding a package does not import it."""
    if gpu.flavour == "tensorrt":
        return "on that GPU, with the tensorrt extra; --onnx-only here"
    return "builds here" if find_spec("tensorrt_rtx") else "pip install tensorrt-rtx, then builds here"


def catalogue() -> dict[str, Any]:
    """Everything ``list --json`` prints."""
    return {
        "models": [model_row(m) for m in MODELS.values()],
        "gpus": [gpu_row(g) for g in GPUS.values()],
        "plugins": plugins_here(),
    }


def show_catalogue(console: Console) -> None:
    """The two tables, and which plugins engines get here."""
    models = open_table("Models (--model)", "INT8: the weights; VRAM: an estimate at max L, one expert resident")
    for heading in ("model", "size", "L", "max L", "steps", "INT8", "VRAM"):
        models.add_column(heading, justify="left" if heading in ("model", "size") else "right", no_wrap=True)
    for model in MODELS.values():
        row = model_row(model)
        count = f"{len(model.experts)} × " if len(model.experts) > 1 else ""
        models.add_row(
            model.name,
            row["size"],
            f"{row['tokens']:,}",
            f"{row['max_tokens']:,}",
            str(model.steps),
            count + gigabytes(row["weights_bytes"]),
            gigabytes(row["vram_estimate_bytes"]),
        )
    console.print(models)
    gpus = open_table("GPUs (--gpu)", "on that GPU: with the tensorrt extra; --onnx-only makes the rest anywhere")
    for heading in ("gpu", "product", "SM", "flavour", "VRAM", "engines"):
        whole = heading not in ("product", "engines")  # what a command line takes is never cut or broken
        gpus.add_column(heading, justify="right" if heading in ("SM", "VRAM") else "left", no_wrap=whole)
    for gpu in GPUS.values():
        gpus.add_row(
            gpu.name, gpu.product, str(gpu.sm), gpu.flavour, f"{gpu.vram_gib} GiB", needs(gpu).partition(",")[0]
        )
    console.print(gpus)
    console.print(f"Plugins here: {plugins_line()}.")


def open_table(title: str, caption: str | None = None) -> Table:
    """Without outer edges, so that its rows fit a terminal of 80 columns."""
    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def gigabytes(count: int) -> str:
    """A number of bytes in GB (10⁹) or MB (10⁶), as one reads it."""
    if count >= 10**9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 10**5 else f"{count:,} B"
