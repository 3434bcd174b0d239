"""``turbotrt plan``: what a run would keep in device memory. It works on the base install, without torch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from exporter.cli.options import (
    BackendOption,
    BundleOption,
    FramesOption,
    JsonOption,
    SizeOption,
    StepsOption,
    VramOption,
    parse_frames,
    parse_size,
)
from exporter.terminal import say


def plan(
    bundle: BundleOption,
    vram: VramOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    steps: StepsOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host-memory",
            metavar="SIZE",
            help="Of a pipeline that is kept: the most page-locked memory for weights that do not fit the device. "
            "[dim]\\[default: 16GB][/]",
        ),
    ] = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say what a run would keep in device memory and what it would stream, without loading anything.

    Needs neither a GPU nor weights; --backend torch plans for the device here. Without --vram: everything resident.
    Text encoder, DiT and VAE run one after the other, so that the largest part counts. A program's VideoPipeline keeps
    what fits on the device between videos: what that is comes last.

    Example: turbotrt plan --bundle engines/wan2.1-14b-720p-rtx5090 --vram 12GB
    """
    from runtime.backends.registry import backend_kind
    from runtime.bundle import load_manifest
    from runtime.byte_sizes import gigabytes, parse_bytes
    from runtime.media.parts.plan import Sizes, bundle_parts, listed_layers, plan_parts, planned
    from runtime.media.parts.residency import HOST_LIMIT

    manifest, kind = load_manifest(bundle), backend_kind(backend)
    budget = None if vram is None else parse_bytes(vram)
    parts, layers = bundle_parts(manifest), listed_layers(bundle, manifest)
    sizes, figures = Sizes(parse_size(size), parse_frames(frames), steps, text_layers=layers), planned(kind, manifest)
    made = plan_parts(manifest, figures, parts, sizes, vram=budget)
    limit = HOST_LIMIT if host is None else parse_bytes(host)
    resident = plan_parts(manifest, figures, parts, sizes, vram=budget, again=parts, host_limit=limit).residency
    if as_json:
        listed = {"parts": made.residency.plain()["parts"], "resident": resident.plain()}
        say(json.dumps({**made.dit.plain(), **listed, "source": kind.source}, indent=2))
        return
    for line in made.lines():
        say(line)
    say(f"A pipeline that is kept for the next video: at most {gigabytes(resident.most)}")
    for line in resident.between():
        say(f"  {line}")
    say(f"The DiT: {made.dit.lines()[0]}")
    for line in made.dit.lines()[1:]:
        say(line)
    say(f"  smallest budget that works: {gigabytes(made.dit.smallest)}; the CUDA context comes on top")
    say(f"  by {kind.source}")
