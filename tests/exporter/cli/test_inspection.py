"""What turbotrt inspect prints: its tables in a terminal of 80 columns and in a wider one."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from exporter.cli.inspection import inspect_bundle, show_inspection
from runtime.bundle import write_manifest
from tests.support.bundle_factory import make_bundle
from tests.support.exported import Exported
from tests.support.progress import SilentProgress


def shown(folder: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    show_inspection(console, inspect_bundle(folder, SilentProgress()))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [80, 120])
def test_no_name_is_broken(exported: Exported, width: int) -> None:
    text = shown(exported.folder, width)
    found = inspect_bundle(exported.folder, SilentProgress())
    words = {word.rstrip(",") for word in text.split()}
    assert max(map(len, text.splitlines())) <= width
    stages = found.manifest.stages
    assert {stage.name for stage in stages} <= words
    assert {f"{t.dtype}[{','.join(map(str, t.dims))}]" for s in stages for t in s.outputs if "." not in t.name} <= words
    assert set(found.manifest.plans) <= words
    assert {kernel.name for plan in found.plans.values() for kernel in plan.kernels} <= words
    assert set(found.manifest.files) <= words
    assert "…" not in text.replace("… ", "").replace(" …", "")  # nothing was cut
    assert text.count("┃") == 0


def test_a_wide_terminal_shows_more(exported: Exported) -> None:
    """Names of inputs and each node's plan; in 80 columns Files lists the plans once."""
    narrow, wide = (shown(exported.folder, width) for width in (80, 120))
    found = inspect_bundle(exported.folder, SilentProgress())
    for file in set(found.manifest.plans.values()):
        assert narrow.count(file) == 1
        assert wide.count(file) == 1 + list(found.manifest.plans.values()).count(file)
    assert ("time_features" in narrow, "time_features" in wide) == (False, True)


def test_what_a_name_does_not_say_is_said(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path)
    embed, *others = manifest.stages
    stages = (
        msgspec.structs.replace(embed, engine=None, activation_bytes=None),
        *others,
        msgspec.structs.replace(embed, name="one-file", expert="model"),
    )
    write_manifest(tmp_path, msgspec.structs.replace(manifest, stages=stages))
    text = shown(tmp_path, 80)
    assert "/blocks/copy, Copy " in text  # a node that is not named after its op
    assert "one-file, model " in text
    assert "stages without an engine (--onnx-only): embed\n" in text
