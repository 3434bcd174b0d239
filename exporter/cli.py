"""The command line. Heavy imports (torch, onnx, triton, TensorRT) happen inside the command that needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter import cli_bench_media, cli_kernels, cli_run
from exporter.bundle.polygraphy_files import closing_lines as polygraphy_lines
from exporter.cli_compare import compare
from exporter.command import (
    CHECKPOINT_HELP,
    EPILOG,
    AttentionOption,
    Command,
    ComponentsOption,
    GpuOption,
    JsonOption,
    LinearOption,
    ModelOption,
    TextEncoderOption,
    TextLinearOption,
    TokenizerOption,
    TopkOption,
    VaeOption,
    console,
)
from exporter.models import model_named
from exporter.progress import RichProgress
from exporter.spec import ExportSpec, export_spec, parse_linear
from plugins.errors import UserError
from runtime.bundle import load_manifest
from runtime.byte_sizes import gigabytes
from runtime.checks import pack_command, rebuild_command
from runtime.versions import own_version

if TYPE_CHECKING:
    from exporter.packing.dit import PackedWeights

app = typer.Typer(
    help="Exports TurboDiffusion's distilled Wan video models to TensorRT engines, on a machine without a GPU.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"turbotrt {own_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What is common to all commands."""


@app.command(cls=Command)
def export(
    model: ModelOption,
    gpu: GpuOption,
    checkpoint: Annotated[
        str,
        typer.Option(metavar="PATH|HF_ID|none", help=CHECKPOINT_HELP + " none: engines only, which need no weights."),
    ] = "none",
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The bundle is DIR/<model>-<gpu>/; an old one is replaced when all is done."),
    ] = Path("engines"),
    attention: AttentionOption = "sagesla",
    topk: TopkOption = None,
    linear: LinearOption = "int8",
    onnx_only: Annotated[
        bool,
        typer.Option("--onnx-only", help="ONNX graphs, plans and weights, no engines: for GPUs not built for here."),
    ] = False,
    one_file: Annotated[
        bool,
        typer.Option(
            "--one-file",
            help="Also one engine that holds all blocks and weights; takes 3.3 × the weights in RAM.",
        ),
    ] = False,
    components: ComponentsOption = None,
    text_encoder: TextEncoderOption = None,
    tokenizer: TokenizerOption = None,
    vae: VaeOption = None,
    text_linear: TextLinearOption = "bf16",
) -> None:
    """Build the bundle of one [bold]model[/] for one [bold]GPU[/]: engines, ONNX, launch plans and packed weights.

    No GPU is needed for RTX parts. Stages whose inputs have not changed are skipped.

    Examples:

      turbotrt export --model wan2.1-14b-720p --gpu rtx5090

      turbotrt export --model wan-tiny --gpu rtx4090 --out build

      turbotrt export --model wan2.1-1.3b-480p --gpu rtx3090 --checkpoint ./turbowan.pth

      turbotrt export --model wan2.2-i2v-a14b-720p --gpu h100 --onnx-only
    """
    spec = export_spec(
        model=model,
        gpu=gpu,
        attention=attention,
        topk=topk,
        linear=linear,
        checkpoint=checkpoint,
        out=out,
        onnx_only=onnx_only,
        one_file=one_file,
        components=components,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=vae,
        text_linear=text_linear,
    )
    from exporter.export import export_bundle

    folder = export_bundle(spec, RichProgress())
    typer.echo("\n".join(_closing_lines(spec, folder)))


def _closing_lines(spec: ExportSpec, folder: Path) -> list[str]:
    """What came out, and how to add weights where there are none."""
    from exporter.packing.dit import weight_paths

    what = "ONNX graphs and plans" if spec.onnx_only else "engines, ONNX graphs and plans"
    lines = polygraphy_lines(folder, spec.flavour)
    weights = folder / "weights.safetensors"
    if spec.checkpoint is not None or all(path.is_file() for path in weight_paths(weights, spec.model).values()):
        return [*lines, *_media_lines(spec, folder), f"{folder}: {what}, weights."]
    manifest = load_manifest(folder)
    return [
        *lines,
        *_media_lines(spec, folder),
        f"{folder}: {what}. It has no weights yet; add them with one of",
        f"  {pack_command(folder, manifest)}",
        f"  {rebuild_command(manifest, folder, checkpoint=True)}",
    ]


def _media_lines(spec: ExportSpec, folder: Path) -> list[str]:
    """Which weights of text encoder and VAE are missing, and the options that add them."""
    names = {"text": "--text-encoder", "vae": "--vae"}
    parts = [part for part in spec.components if part in names and not (folder / f"{part}.safetensors").is_file()]
    given = " ".join(f"{names[part]} PATH_OR_HF_ID" for part in parts)
    return [f"Prompts and videos need the weights that export's {given} adds."] if parts else []


@app.command("list", cls=Command)
def list_(as_json: JsonOption = False) -> None:
    """List the models and GPUs: sizes, tokens, weights, VRAM, and where engines for each GPU can be built."""
    from exporter import catalogue

    if as_json:
        typer.echo(json.dumps(catalogue.catalogue(), indent=2))
    else:
        catalogue.show_catalogue(console())


@app.command(cls=Command)
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that turbotrt export wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Show a bundle and verify its files against the manifest; status 1 if anything is wrong with them.

    Example: turbotrt inspect engines/wan2.1-14b-720p-rtx5090
    """
    from exporter.inspection import inspect_bundle, show_inspection

    found = inspect_bundle(bundle, RichProgress())
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=2))
    else:
        show_inspection(console(), found)
    if found.problems:
        raise typer.Exit(1)


@app.command(cls=Command)
def pack(
    checkpoint: Annotated[str, typer.Option(metavar="PATH|HF_ID", help=CHECKPOINT_HELP)],
    model: ModelOption,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A .safetensors file; two experts add their names to it. In a bundle, it is listed there.",
        ),
    ],
    linear: Annotated[
        str | None, typer.Option(metavar="int8|bf16", help="[dim]\\[default: the bundle's, else int8][/]")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="sagesla|sla|sage",
            help="sla or sage accept a checkpoint without proj_l. [dim]\\[default: the bundle's, else sagesla][/]",
        ),
    ] = None,
) -> None:
    """Quantize and pack a checkpoint's weights, without engines; needs less than 3 GiB of memory for any size.

    Example: turbotrt pack --checkpoint ./turbowan.pth --model wan2.1-1.3b-480p --out weights.safetensors
    """
    spec, mode = model_named(model), None if linear is None else parse_linear(linear)
    if attention not in (None, "sagesla", "sla", "sage"):
        raise UserError(f"--attention {attention!r} is not known.", expected="sagesla, sla, sage", got=attention)
    if out.suffix != ".safetensors":
        raise UserError(
            "--out is not a name for packed weights.", expected="a name ending in .safetensors", got=str(out)
        )
    from exporter.packing.dit import add_to_bundle, bundle_of, pack_checkpoint

    manifest = bundle_of(out, spec, mode)
    chosen = attention or (manifest.sampler.attention if manifest else "sagesla")
    packed: PackedWeights = pack_checkpoint(
        checkpoint,
        spec,
        out,
        linear=mode or (manifest.sampler.linear if manifest else "int8"),
        allow_missing_proj_l=chosen in ("sla", "sage"),
        progress=RichProgress(),
        bundle=manifest,
    )
    if manifest is not None:
        add_to_bundle(out.parent, manifest, packed, RichProgress())
        typer.echo(f"{out.parent / 'manifest.json'}: lists the weights.")
    for path in packed.files.values():
        typer.echo(f"{path}: {gigabytes(path.stat().st_size)}")


@app.command(cls=Command)
def merge(
    base: Annotated[str, typer.Option(metavar="PATH|HF_ID", help="The model both trainings started from.")],
    sla: Annotated[str, typer.Option(metavar="PATH|HF_ID", help="Its sparse-linear attention training, with proj_l.")],
    rcm: Annotated[str, typer.Option(metavar="PATH|HF_ID", help="Its few-step (rCM) training.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The merged checkpoint, .safetensors.")],
    weight: Annotated[float, typer.Option(help="How much of the sparse-linear training to add.")] = 1.0,
) -> None:
    """Merge two trainings of one base as the authors do: base + weight·(sla − base) + (rcm − base), in fp32.

    Example: turbotrt merge --base wan.safetensors --sla sla.pth --rcm rcm.pth --out merged.safetensors
    """
    if out.suffix != ".safetensors":
        raise UserError("--out is not a name for a checkpoint.", expected="a name ending in .safetensors", got=str(out))
    from exporter.checkpoint.hub import resolve
    from exporter.packing.merge import merge as merge_checkpoints

    out.parent.mkdir(parents=True, exist_ok=True)
    with RichProgress().stage(f"merge {out.name}") as update:
        merge_checkpoints(resolve(base), resolve(sla), resolve(rcm), out, weight=weight, progress=update)
    typer.echo(f"{out}: {gigabytes(out.stat().st_size)}")


cli_run.register(app)
cli_kernels.register(app, cli_run.bench_app)
cli_bench_media.register(cli_run.bench_app)
app.command(cls=Command)(compare)

export_app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", no_args_is_help=True
)
export_app.command(cls=Command, epilog=EPILOG)(export)


def main() -> None:
    """The ``turbotrt`` script."""
    app(prog_name="turbotrt")


def export_main() -> None:
    """The ``export`` script: ``turbotrt export`` under the name that bash's builtin shadows."""
    export_app(prog_name="export")


if __name__ == "__main__":
    main()
