"""The command line put together. Heavy imports (torch, onnx, triton, TensorRT) happen inside the command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from exporter.cli.bench import bench_app
from exporter.cli.bench_generate import bench_generate
from exporter.cli.bench_media import bench_media
from exporter.cli.bench_vae import bench_vae
from exporter.cli.command import EPILOG, Command, typed
from exporter.cli.compare import compare
from exporter.cli.doctor import doctor
from exporter.cli.export import export
from exporter.cli.generate import generate
from exporter.cli.kernels import BENCHMARKS, COMMANDS
from exporter.cli.plan import plan
from exporter.cli.selftest import selftest
from exporter.cli.show import inspect, list_
from exporter.cli.weights import merge, pack
from exporter.terminal import any_encoding, say
from plugins.library import library_path, library_version
from runtime.versions import own_version

app = typer.Typer(
    help="Exports TurboDiffusion's distilled Wan video models to TensorRT engines, on a machine without a GPU.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
export_app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", no_args_is_help=True
)


def _version(asked: bool) -> None:
    if asked:
        say(f"turbotrt {own_version()}")
        path = library_path()
        say(f"plugin library: {'none, Python plugins run' if path is None else library_version(path)}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What is common to all commands."""


#: The commands in the order in which one meets them.
_COMMANDS: dict[str, Callable[..., None]] = {
    "export": export,
    "doctor": doctor,
    "list": list_,
    "inspect": inspect,
    "pack": pack,
    "merge": merge,
    "generate": generate,
    "plan": plan,
    **COMMANDS,
    "compare": compare,
    "selftest": selftest,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, cls=Command)(typed(_function))
_BENCHES: dict[str, Callable[..., None]] = {
    **BENCHMARKS,
    "media": bench_media,
    "vae": bench_vae,
    "generate": bench_generate,
}
for _name, _function in _BENCHES.items():
    bench_app.command(_name, cls=Command)(typed(_function))
app.add_typer(bench_app, name="bench")
export_app.command(cls=Command, epilog=EPILOG)(typed(export))


def main() -> None:
    """The ``turbotrt`` script."""
    any_encoding()
    app(prog_name="turbotrt")


def export_main() -> None:
    """The ``export`` script: ``turbotrt export`` under the name that bash's builtin shadows."""
    any_encoding()
    export_app(prog_name="export")
