"""Every message that a UserError of the sources may begin with, read off the code: "There is no model named …."."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tests.support.paths import ROOT

VARYING = "…"  # what differs from case to case
PACKAGES = ("exporter", "plugins", "runtime")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class _Call:
    """A call, where it is, and the function and the class around it (None: none)."""

    node: ast.Call
    place: str
    function: Function | None
    owner: str | None

    @property
    def name(self) -> str:
        """What is called: a function, a method or a class, without what it is an attribute of."""
        called = self.node.func
        return called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")

    def argument(self, index: int, name: str) -> ast.expr | None:
        """The argument at a place or of a name."""
        if len(self.node.args) > index:
            return self.node.args[index]
        return next((keyword.value for keyword in self.node.keywords if keyword.arg == name), None)


def _calls(node: ast.AST, file: str, function: Function | None = None, owner: str | None = None) -> Iterator[_Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield _Call(child, f"{file}:{child.lineno}", function, owner)
        inside = child if isinstance(child, Function) else function
        yield from _calls(child, file, inside, child.name if isinstance(child, ast.ClassDef) else owner)


def _kinds(classes: list[ast.ClassDef]) -> tuple[set[str], set[str]]:
    """The classes of user errors: those made of their message, and those with an __init__ of their own."""
    plain, own = {"UserError"}, set[str]()
    for _ in range(2):  # as deep as anyone derives
        for node in classes:
            if plain & {ast.unparse(base) for base in node.bases}:
                makes = any(isinstance(item, Function) and item.name == "__init__" for item in node.body)
                (own if makes else plain).add(node.name)
    return plain, own


def _templates(value: ast.expr) -> set[str]:
    """The texts that an expression may give, ``VARYING`` where that is not known."""
    match value:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=parts):
            return {"".join(chosen) for chosen in product(*map(_templates, parts))}
        case ast.FormattedValue(value=ast.IfExp() as choice):
            return _templates(choice)
        case ast.IfExp(body=first, orelse=second):
            return _templates(first) | _templates(second)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return {a + b for a in _templates(left) for b in _templates(right)}
    return {VARYING}


def _first_sentence(text: str) -> str:
    whole = re.sub(f"{VARYING}+", VARYING, " ".join(text.split()))
    found = re.match(rf".*?\.(?=[\s{VARYING}]|$)", whole)
    return found[0] if found else whole


class _Messages:
    """First sentence → place; and the functions that take a message: name, place and name of the parameter."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.makers: list[tuple[str, int, str]] = []

    def take(self, call: _Call, value: ast.expr | None) -> None:
        """The message that is this argument of a call."""
        if isinstance(value, ast.Name) and call.function is not None:
            parameters = [arg.arg for arg in call.function.args.args if arg.arg != "self"]
            if value.id in parameters:
                self.makers.append((call.function.name, parameters.index(value.id), value.id))
            for given in _assigned(value.id, call.function):
                self.take(call, given)
        elif value is not None:
            for text in map(_first_sentence, _templates(value)):
                if re.search("[a-z]", text):  # else it was made elsewhere, and is found there
                    self.found.setdefault(text, call.place)


def _assigned(name: str, function: Function) -> list[ast.expr]:
    """What a function gives a variable of its own."""
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]


def user_errors() -> dict[str, str]:
    """First sentence of every message → one place that makes it."""
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    calls = [call for file, tree in trees.items() for call in _calls(tree, file)]
    plain, own = _kinds([node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)])
    messages = _Messages()
    for call in calls:
        if call.name in plain or (call.name == "__init__" and call.owner in own):
            messages.take(call, call.argument(0, "problem"))
    for name, index, parameter in messages.makers:
        for call in calls:
            if call.name == name:
                messages.take(call, call.argument(index, parameter))
    return messages.found
