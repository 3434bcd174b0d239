"""The order of the rooms: a module imports from its own room and from those before it, and no two import each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.imports import circle, import_graph, modules
from tests.support.paths import ROOT

#: From low to high. "a.b" is a module or a folder with all that it holds, "a.*" the files of a folder itself; the
#: longest name that fits a module says where it is. A new op is in a room already: a folder with an op.py.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("plugins.*",),
    ("plugins: ops",),
    ("plugins.registry",),
    ("plugins.native",),
    ("plugins.compile", "plugins.plan_cache", "plugins.torch_op", "plugins.onnx_schema"),
    ("plugins.sass",),
    ("runtime.*",),
    ("runtime.backends",),
    ("runtime.weights",),
    ("runtime.run", "runtime.tensor_files"),
    ("runtime.media.files",),
    ("runtime.media.vae",),
    ("runtime.media.text",),
    ("runtime.pipeline",),
    ("runtime.media",),
    ("runtime", "runtime.bench"),
    ("exporter.*",),
    ("exporter.networks.weight_spec", "exporter.networks.stage_spec"),
    ("exporter.networks.dit",),
    ("exporter.networks.vae",),
    ("exporter.networks.tiny",),
    ("exporter.networks.text",),
    ("exporter.networks",),
    ("exporter.spec",),
    ("exporter.doctor",),
    ("exporter.checkpoint",),
    ("exporter.packing",),
    ("exporter.bundle",),
    ("exporter.graphs",),
    ("exporter.builder",),
    ("exporter.torch_backend",),
    ("exporter.bench",),
    ("exporter.compare.spec", "exporter.compare.scene"),
    ("exporter.compare.report",),
    ("exporter.compare.machines",),
    ("exporter.compare",),
    ("exporter.export",),
    ("exporter.selftest",),
    ("exporter.cli",),
)
RANK = {name: rank for rank, room in enumerate(ROOMS) for name in room}
GRAPH = import_graph(ROOT)
OPS = {f"plugins.{path.parent.name}" for path in (ROOT / "plugins").glob("*/op.py")}


def entry(module: str) -> str | None:
    """The name in ROOMS that says where a module is, or None."""
    parts = module.split(".")
    if ".".join(parts[:2]) in OPS:
        return "plugins: ops"
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in RANK and (length > 1 or len(parts) == 1):
            return name
    file = len(parts) == 1 or (len(parts) == 2 and (ROOT / parts[0] / f"{parts[1]}.py").exists())
    return f"{parts[0]}.*" if file else None


def test_every_module_is_in_a_room_and_every_room_has_modules() -> None:
    entries = {module: entry(module) for module in GRAPH}
    assert [module for module, name in entries.items() if name is None] == [], "name their room in ROOMS"
    assert set(RANK) == set(entries.values())


def test_no_module_imports_from_a_higher_room() -> None:
    places = {module: RANK.get(entry(module) or "", -1) for module in GRAPH}
    up = [f"{a} → {b}" for a, after in GRAPH.items() for b in sorted(after) if places[b] > places[a]]
    assert up == []


def test_no_circle_of_modules() -> None:
    assert circle(GRAPH) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """plugins.a imports b at import time, b imports a in a function, c imports a for a type checker alone."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "__init__.py").write_text("")
    (tmp_path / "plugins" / "a.py").write_text("from plugins import b\nimport json\n")
    (tmp_path / "plugins" / "b.py").write_text("def f():\n    if True:\n        from plugins.a import x\n")
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from plugins.a import X\n"
    (tmp_path / "plugins" / "c.py").write_text(typed)
    return tmp_path


def test_circles_are_seen_inside_functions_too(tree: Path) -> None:
    assert set(modules(tree)) == {"plugins", "plugins.a", "plugins.b", "plugins.c"}
    graph = import_graph(tree)
    assert graph == {"plugins": set(), "plugins.a": {"plugins.b"}, "plugins.b": {"plugins.a"}, "plugins.c": set()}
    assert sorted(circle(graph)) == ["plugins.a", "plugins.b"]
