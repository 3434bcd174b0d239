"""``turbotrt selftest``: proof or a diagnosis for the GPU at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.progress import RichProgress
from exporter.selftest import LIMIT
from exporter.terminal import console

if TYPE_CHECKING:
    from exporter.selftest.rows import Row

JsonFileOption = Annotated[
    Path, typer.Option("--json", metavar="FILE", help="Where the whole goes, row by row as it is found.")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="One bundle and one size, no times: a minute or two.")]
OnlyOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Parts (ops, stages, generate, cold, warm, times), bundles (sagesla-int8, …, image-to-video) and who runs "
        "our ops (python, library, embedded), of each kind those to test. [dim]\\[default: all][/]",
    ),
]
KeepOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep the bundles here. [dim]\\[default: they are removed][/]")
]
BundlesOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Take the bundles that --keep left, as they are: on a machine without torch."),
]
TargetOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="GPU", help="Make bundles for this one. [dim]\\[default: the GPU that is here][/]"),
]
TimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=1, help="What takes longer counts as hanging, and is ended.")
]


def selftest(
    quick: QuickOption = False,
    only: OnlyOption = None,
    json_file: JsonFileOption = Path("selftest.json"),
    keep: KeepOption = None,
    bundles: BundlesOption = None,
    gpu: TargetOption = None,
    timeout: TimeoutOption = LIMIT,
) -> None:
    """Test this GPU: do engines load, and compute what they should? Status 1 if a row fails; a JSON file to attach.

    It exports wan-tiny for the GPU that is here, with every kind of attention and Linears, text encoder and VAE; runs
    every op's kernels alone, every stage alone, and whole videos, resident and streamed, at two sizes; compares all
    with references that come with it; and times a block and a step of 1.3B and 14B, on random weights, beside
    turbotrt estimate. No checkpoint is needed, and nothing is downloaded.

    What is tested runs in processes of its own: where one crashes or hangs, that is a row, and the next ones go on.
    Ctrl-C leaves the file with what was found so far. On a GPU without engines the torch backend is tested instead.

    Examples:

      turbotrt selftest

      turbotrt selftest --quick --json quick.json

      turbotrt selftest --only stages,sla-bf16 --keep bundles
    """
    from exporter.selftest.run import Selftest, SelftestSpec
    from exporter.selftest.table import failure_lines, show

    progress = RichProgress()

    def on_row(row: Row) -> None:
        if row.status == "failed":
            progress.note(next(iter(failure_lines(row))))

    names = tuple(name.strip() for name in only.split(",")) if only else ()
    spec = SelftestSpec(
        json_file, gpu, keep, bundles, names, quick, timeout, command=" ".join(["turbotrt", *sys.argv[1:]])
    )
    test = Selftest(spec, progress, on_row)
    try:
        test.run()
    finally:
        if test.report.rows and test.report.machine is not None and test.report.gpu is not None:
            show(console(), test.report, json_file)
    if not test.report.passed:
        raise typer.Exit(1)
