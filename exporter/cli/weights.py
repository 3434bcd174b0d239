"""``turbotrt pack`` and ``merge``: checkpoints made ready, without engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exporter.cli.options import (
    CHECKPOINT_HELP,
    LoraHighOption,
    LoraLowOption,
    LoraOption,
    LoraPartialOption,
    ModelOption,
)
from exporter.loras import LoraArguments
from exporter.models import model_named
from exporter.networks.dit.options import ATTENTIONS
from exporter.progress import RichProgress
from exporter.spec import parse_linear
from exporter.terminal import say
from plugins.errors import UserError
from runtime.atomic import check_place, told
from runtime.byte_sizes import gigabytes


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
            metavar="|".join(ATTENTIONS),
            help="All but sagesla accept a checkpoint without proj_l. [dim]\\[default: the bundle's, else sagesla][/]",
        ),
    ] = None,
    lora: LoraOption = None,
    lora_high: LoraHighOption = None,
    lora_low: LoraLowOption = None,
    lora_partial: LoraPartialOption = False,
) -> None:
    """Quantize and pack a checkpoint's weights, without engines; needs less than 3 GiB of memory for any size.

    Example: turbotrt pack --checkpoint ./turbowan.pth --model wan2.1-1.3b-480p --out weights.safetensors
    """
    spec, mode = model_named(model), None if linear is None else parse_linear(linear)
    if attention not in (None, *ATTENTIONS):
        raise UserError(f"--attention {attention!r} is not known.", expected=", ".join(ATTENTIONS), got=attention)
    if out.suffix != ".safetensors":
        raise UserError(
            "--out is not a name for packed weights.", expected="a name ending in .safetensors", got=str(out)
        )
    from exporter.packing.dit import pack_into

    loras = LoraArguments.typed(lora, lora_high, lora_low, lora_partial).of(spec)
    report = RichProgress()
    packed, bundle = pack_into(checkpoint, spec, out, linear=mode, attention=attention, progress=report, loras=loras)
    if bundle is not None:
        say(f"{out.parent / 'manifest.json'}: lists the weights.")
    for path in packed.files.values():
        say(f"{path}: {gigabytes(path.stat().st_size)}")


def merge(
    base: Annotated[
        str,
        typer.Option(
            metavar="PATH|HF_ID",
            help="The pretrained model that both trainings started from: --diff_base of the authors' merge_models.py.",
        ),
    ],
    sla: Annotated[
        str,
        typer.Option(
            metavar="PATH|HF_ID",
            help="Its sparse-linear attention training, the only one with proj_l: the authors' --diff_target.",
        ),
    ],
    rcm: Annotated[
        str,
        typer.Option(
            metavar="PATH|HF_ID", help="Its few-step (rCM) training: [bold]the authors' --base[/], which ours is not."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The merged checkpoint, .safetensors.")],
    weight: Annotated[float, typer.Option(help="How much of the sparse-linear training to add.")] = 1.0,
) -> None:
    """Merge two trainings of one base as the authors do: base + weight·(sla − base) + (rcm − base), in fp32.

    The result has the widest dtype of the three. Swapped inputs are refused where names or distances show it.

    Example: turbotrt merge --base wan.safetensors --sla sla.pth --rcm rcm.pth --out merged.safetensors
    """
    if out.suffix != ".safetensors":
        raise UserError("--out is not a name for a checkpoint.", expected="a name ending in .safetensors", got=str(out))
    from exporter.checkpoint.download import tell_downloads
    from exporter.checkpoint.hub import look_for, resolve
    from exporter.packing.merge import merge as merge_checkpoints

    with told(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    check_place(out)
    report = RichProgress()
    asked = [look_for(text, report.note) or () for text in (base, sla, rcm)]
    tell_downloads([download for downloads in asked for download in downloads], report.note)
    with report.stage(f"merge {out.name}") as update:
        paths = resolve(base), resolve(sla), resolve(rcm)
        merge_checkpoints(*paths, out, weight=weight, progress=update, note=report.note)
    say(f"{out}: {gigabytes(out.stat().st_size)}")
