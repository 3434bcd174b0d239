"""What each op's folder must hold: one declaration says or names everything that generic code asks for."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from plugins.op import Op
from plugins.registry import OPS
from tests.support.paths import ROOT

FOLDERS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/op.py"))
each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def test_every_declaration_is_in_the_registry() -> None:
    declared = [
        value
        for folder in FOLDERS
        for value in vars(importlib.import_module(f"plugins.{folder}.op")).values()
        if isinstance(value, Op) and value.folder == folder
    ]
    assert len(declared) == len(OPS)
    assert {op.name: op for op in declared} == dict(OPS)


@each_op
def test_precisions_have_bounds(op: Op) -> None:
    precision = any(attribute.name == "precision" for attribute in op.attributes)
    assert set(op.bounds) == ({"int8", "bf16"} if precision else {""})
    for name, bound in op.bounds.items():
        assert op.bound({"precision": name} if precision else {}) == bound
        assert min(bound.compare, bound.test) > 0


@each_op
def test_what_an_op_needs_is_in_its_inputs(op: Op) -> None:
    """Part of a tensor is read by its own symbols, which have values where the op's are bound."""
    assert all(tensor.read is None or len(tensor.read) == len(tensor.shape) for tensor in op.inputs)
    assert all(tensor.read is None for tensor in op.outputs)
    dims = dict.fromkeys(op.symbol_sources(), 256)
    assert all(count > 0 for count in op.operations(dims, op.attribute_values({})).values())


@each_op
def test_named_functions_are_in_the_folder(op: Op) -> None:
    pytest.importorskip("triton")
    kernel, reference = (importlib.import_module(f"plugins.{op.folder}.{name}") for name in ("kernel", "reference"))
    assert callable(getattr(kernel, op.plan_function))
    assert callable(getattr(reference, op.reference_function))
    assert op.tunable == all(hasattr(kernel, name) for name in ("CONFIGS", "legal", "candidates"))


def _imports(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)]
    return {getattr(node, "module", None) or alias.name for node in nodes for alias in node.names}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_declaration_needs_neither_torch_nor_triton(folder: str) -> None:
    light = {"__future__", "typing", "plugins.op", "plugins.expr", *(f"plugins.{other}.op" for other in FOLDERS)}
    assert _imports(ROOT / "plugins" / folder / "op.py") <= light
