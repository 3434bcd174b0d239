"""The documents say what is there: links, paths, names, tables, messages; and their commands are ones that exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from exporter.bundle.polygraphy_files import input_lines, look_lines, setup_lines
from exporter.bundle.vram import vram_estimate
from exporter.cli.app import app
from exporter.cli.catalogue import gigabytes
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.networks.dit.weights import packed_bytes
from plugins.registry import OPS
from runtime.versions import own_version
from tests.support.documents import DOCUMENTS, anchors, links, prose, shell_lines
from tests.support.paths import ROOT
from tests.support.user_errors import user_errors

README = ROOT / "README.md"
TOPS = ("exporter", "plugins", "runtime", "tests", "docs", "engines", ".ci")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document: str) -> None:
    path = ROOT / document
    for link in links(path):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_document_is_reached_from_the_readme() -> None:
    seen, ahead = set(), {"README.md"}
    while ahead:
        seen |= ahead
        found = {ROOT / document: links(ROOT / document) for document in ahead}
        targets = {(path.parent / link.partition("#")[0]).resolve() for path, all_ in found.items() for link in all_}
        ahead = {document for document in DOCUMENTS if (ROOT / document).resolve() in targets} - seen
    assert seen == set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_short(document: str) -> None:
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []
    assert document != "README.md" or len(lines) <= 150


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if document != "CHANGELOG.md"])
def test_paths_and_names_are_there(document: str) -> None:
    """Every path of the tree that is named, and every name of a module: `plugins/<op>/op.py`, `plugins.errors.X`."""
    spans = re.findall(r"`([^`\s]+)`", prose(ROOT / document))
    for span in spans:
        top = span.split("/")[0]
        if top in TOPS and "/" in span and not span.startswith("engines/wan") and "<model>" not in span:
            assert any(ROOT.glob(re.sub(r"<\w+>", "*", span).rstrip("/"))), span
        if match := re.fullmatch(r"((?:exporter|plugins|runtime)(?:\.\w+)+)\(?.*", span):
            assert _is_defined(match[1]), span


def _is_defined(dotted: str) -> bool:
    """Whether a module, or a name at the top of one, is there; nothing is imported."""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
    return module.is_file() and (path.name in _names(module) or f'"{path.name}"' in module.read_text("utf-8"))


def _names(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _lines() -> list[str]:
    return list(dict.fromkeys(line for document in DOCUMENTS for line in shell_lines(ROOT / document)))


def test_every_command_is_documented_and_parses() -> None:
    group: Any = get_command(app)
    seen = set()
    for line in _lines():
        words = shlex.split(line)
        words = ["turbotrt", *words[1:]] if words[0] == "env" else words
        if words[0] == "turbotrt":
            command = group.commands[words[1]]
            command.make_context(words[1], words[2:])  # raises on an unknown option or a missing one
            seen.add(words[1])
    assert seen == set(group.commands)


def test_other_lines_are_of_tools_that_we_have() -> None:
    """What no test types: make's targets, pip's extras, pytest's markers, a bundle's lines for Polygraphy."""
    makefile, project = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    polygraphy = {*setup_lines("tensorrt"), *input_lines(["block"]), *look_lines()}  # test_polygraphy_files types them
    for line in _lines():
        words = shlex.split(line)
        tool = words[0].removeprefix(".venv/bin/")
        if tool == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), line
        elif tool == "pip":
            extras = re.search(r"\[(.+)\]$", words[-1])
            assert words[-1] == "pre-commit" or extras is not None, line
            for extra in extras[1].split(",") if extras else ():
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), line
        elif tool == "pytest":
            assert words[1:] == ["-m", "gpu"], line
            assert 'markers = ["gpu:' in project
        elif tool not in ("turbotrt", "env"):
            assert line in polygraphy | {"python -m venv .venv", "pre-commit install"}, line
    assert {"make test", "make lint", "make export MODEL=wan2.1-14b-720p GPU=rtx5090"} <= set(_lines())


def test_readme_tables_are_the_codes() -> None:
    text = README.read_text(encoding="utf-8")
    models = text.partition("## Models")[2].partition("\n## ")[0]
    for model in MODELS.values():
        (row,) = re.findall(rf"^\| {re.escape(model.name)} \| (\d.*)\|$", models, re.MULTILINE)
        for fact in (model.tokens(), model.max_tokens):
            assert f"| {fact:,} |" in f"| {row}", model.name
        assert gigabytes(packed_bytes(model)) in row
        assert gigabytes(vram_estimate(model)) in row
    table = text.partition("## GPUs")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z][\w, -]+) \| (\d+)[^|]*\| `(\w+)` \|", table, re.MULTILINE)
    listed = {name: (int(sm), flavour) for names, sm, flavour in rows for name in names.split(", ")}
    assert listed == {gpu.name: (gpu.sm, gpu.flavour) for gpu in GPUS.values()}


def test_the_state_is_on_the_first_screen() -> None:
    first = README.read_text(encoding="utf-8").splitlines()[:32]
    assert any(line.startswith("**No RTX engine has ever been executed") for line in first)


def test_semantics_has_what_the_code_cites() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = set()
    for package in ("exporter", "plugins", "runtime", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            cited |= set(re.findall(r"\(semantics\.md, ([^),]+)", path.read_text(encoding="utf-8")))
    assert {"DiT forward", "SLA", "W8A8 block-128", "rCM few-step loop"} <= cited
    assert [name for name in cited if not any(heading.startswith(name) for heading in headings)] == []


def test_every_op_has_a_section_with_its_kernels() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(OPS)
    for key in json.loads((ROOT / "tests" / "support" / "kernel_bounds.json").read_text()):
        op, kernel, _ = key.split()
        assert f"`{kernel}`" in sections[op], key


def test_troubleshooting_has_every_user_error() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- \*\*`(.+?)`\*\* ", text, re.MULTILINE)
    raised = user_errors()
    assert len(raised) > 100, "the scan found too little"
    missing = {first: place for first, place in raised.items() if first not in entries}
    assert missing == {}, "add these to docs/troubleshooting.md"
    assert [entry for entry in entries if entry not in raised] == [], "nothing says these any more"
    assert len(entries) == len(set(entries))


def test_the_changelog_has_our_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == own_version()


def test_pre_commit_runs_what_the_gate_runs() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    recipes = re.findall(r"^(?:lint|test):.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    gate = [line.strip() for recipe in recipes for line in recipe.splitlines()]
    gate = [line.replace("$(VENV)", ".venv").replace("$(ARGS)", "").strip() for line in gate]
    assert sorted(re.findall(r"entry: (.+)$", config, re.MULTILINE)) == sorted(gate)
    assert config.count("language: system") == config.count("pass_filenames: false") == len(gate)
    assert "\nmake lint\nmake test " in (ROOT / ".ci" / "run").read_text()
