"""Which of our modules import which, read off the sources: at import time and inside functions alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGES = ("exporter", "plugins", "runtime")
Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the packages under a folder by its dotted name; a package by its folder's."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(root: Path) -> Graph:
    """Module → the modules it imports. Those for a type checker alone do not count, those inside functions do."""
    known = modules(root)
    return {name: set(_imports(path, known)) - {name} for name, path in known.items()}


def _imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    queue: list[ast.AST] = [ast.parse(path.read_text())]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            queue.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:  # a name may be a module of a package, or be in the module itself
                if (inner := f"{module}.{alias.name}") in known:
                    yield inner
                elif module in known:
                    yield module
        queue.extend(ast.iter_child_nodes(node))


def circle(graph: Graph) -> list[str]:
    """The modules of one circle in the order of their imports, or none."""
    left = {name: set(after) for name, after in graph.items()}
    while leaves := [name for name, after in left.items() if not after & left.keys()]:
        for name in leaves:
            del left[name]
    path: list[str] = []
    at: str | None = next(iter(left), None)
    while at is not None and at not in path:
        path.append(at)
        at = min(left[at] & left.keys())
    return path[path.index(at) :] if at is not None else []
