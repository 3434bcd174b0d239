"""``turbotrt selftest`` whole, in processes of its own, on a machine that stands in for one with an RTX part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

for _module in ("onnx_graphsurgeon", "tensorrt_rtx", "polygraphy"):
    pytest.importorskip(_module)

from exporter.builder.parent import module_path
from exporter.cli.app import app
from exporter.selftest import process
from exporter.selftest.run import Selftest, SelftestSpec
from exporter.selftest.variants import VARIANTS
from plugins.library import library_path
from runtime.bundle import load_manifest
from tests.support.exported import Exported
from tests.support.host_executor import FAULTS
from tests.support.progress import SilentProgress
from tests.support.selftest_references import add_weights
from tests.support.shared import Shared
from tests.support.stand_in_rtx import FOLDER, MACHINE

FIRST = VARIANTS["sagesla-int8"]
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def bundles(exported: Exported, shared: Shared) -> Path:
    """What ``selftest --keep`` leaves of its first bundle: the session's engines, for as many layers as it wants."""

    def make(folder: Path) -> None:
        made = folder / FIRST.name / f"{FIRST.model.name}-rtx5090"
        shutil.copytree(exported.folder, made)
        manifest = load_manifest(made)
        files = {name: info for name, info in manifest.files.items() if name not in manifest.weights.values()}
        model = msgspec.structs.replace(manifest.model, name=FIRST.model.name, layers=FIRST.model.layers)
        bare = msgspec.structs.replace(manifest, model=model, files=files, weights={})
        add_weights(made, bare, FIRST)

    return shared.once("selftest", make)


@pytest.fixture
def run(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on the machine that stands in: its status, the JSON file, and the terminal."""
    monkeypatch.setattr(process, "module_path", lambda: [str(MACHINE), *module_path()])

    def command(*options: str, faults: dict[str, str] | None = None) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setenv(FOLDER, str(bundles))
        monkeypatch.setenv(FAULTS, json.dumps(faults or {}))
        file = tmp_path / "found.json"
        arguments = ["selftest", "--bundles", str(bundles), "--json", str(file), *options]
        result = CliRunner().invoke(app, arguments)
        assert file.exists(), result.output + repr(result.exception)
        return result.exit_code, json.loads(file.read_text()), result.output

    return command


def test_generations_and_starts_pass_on_engines_that_stand_in(run: Run) -> None:
    status, found, said = run("--quick", "--only", "generate,cold,warm,python")
    assert status == 0, said
    assert found["passed"]
    assert found["ended"] == "finished"
    assert found["backend"] == "tensorrt"
    assert found["machine"]["gpu"] == "NVIDIA GeForce RTX 5090"
    assert found["machine"]["cuda"] == "13.1"
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows)[2:] == [
        "resident, 128×80×17",
        "resident, 128×80×17 again",
        "streamed, 128×80×17",
        "streamed, 128×80×17, as resident",
        "against torch on cpu",
        "cold start",
        "warm start",
    ]
    assert all(row["status"] == "passed" for row in rows.values())
    assert 0 < rows["resident, 128×80×17"]["error"] < rows["resident, 128×80×17"]["bound"]
    assert rows["streamed, 128×80×17, as resident"]["bound"] == 0.0
    assert rows["warm start"]["figures"]["cache_bytes"] > 0
    assert rows["warm start"].get("detail", "") == ""  # nothing was compiled anew
    assert "PASSED: 9 passed, 0 failed, 0 left out" in said


def test_what_goes_wrong_is_a_row_and_not_the_end(run: Run) -> None:
    faults = {
        "BlockInt8GemmGelu": "wrong",
        "embed 108": "hang",
        "block 200": "raise",
        "block 108": "wrong",
        "head 200": "crash",
    }
    host = "python" if library_path() is None else "library"
    only = f"ops,stages,{host},{FIRST.name}"
    status, found, said = run("--only", only, "--timeout", "30", faults=faults)
    assert status == 1
    assert not found["passed"]
    assert found["ended"] == "finished"
    rows = {row["name"]: row for row in found["rows"]}
    failed = {name for name, row in rows.items() if row["status"] == "failed"}
    stages = {"embed, L = 108", "block, L = 200", "block, L = 108", "head, L = 200"}
    assert failed == {"BlockInt8GemmGelu ffn.0", *stages}
    assert {rows[name]["status"] for name in ("embed, L = 200", "head, L = 108")} == {"passed"}
    assert all(rows[name]["stage"] == name.partition(",")[0] for name in stages)
    assert {row["host"] for row in rows.values() if row["part"] == "stages"} == {host}

    op = rows["BlockInt8GemmGelu ffn.0"]
    assert (op["op"], op["error"]) == ("BlockInt8GemmGelu", 1.0)
    assert op["bound"] < 0.1
    hung = rows["embed, L = 108"]
    assert "did not end within 30 s" in hung["detail"]
    assert any("execute_async_v3" in line for line in hung["last_words"])
    raised = rows["block, L = 200"]
    assert raised["op"] == "BlockInt8GemmGelu"
    assert "block.engine could not run" in raised["detail"]
    assert "[ERROR] BlockInt8GemmGelu: enqueue raised an exception on purpose" in raised["last_words"]
    wrong = rows["block, L = 108"]
    assert (wrong["tensor"], wrong["op"]) == ("x", "BlockInt8GemmGelu")
    assert wrong["error"] > wrong["bound"]
    assert "alone, its plan fails too" in wrong["detail"]
    crashed = rows["head, L = 200"]
    assert "op" not in crashed
    assert "op" not in hung
    assert "killed by signal 11 (SIGSEGV)" in crashed["detail"]
    assert any("Segmentation fault" in line for line in crashed["last_words"])
    for row in failed:
        assert row in said
    assert "FAILED: 20 passed, 5 failed, 0 left out" in said


def test_ctrl_c_leaves_what_was_found_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(row: Any) -> None:
        if row.part == "export":
            raise KeyboardInterrupt

    monkeypatch.setattr(process, "module_path", lambda: [str(MACHINE), *module_path()])
    file = tmp_path / "found.json"
    test = Selftest(SelftestSpec(file, bundles=tmp_path / "none", quick=True), SilentProgress(), pressed)
    with pytest.raises(KeyboardInterrupt):
        test.run()
    found = json.loads(file.read_text())
    assert (found["ended"], found["passed"]) == ("interrupted", False)
    assert [row["part"] for row in found["rows"]] == ["machine", "export"]
    assert found["rows"][1]["status"] == "skipped"
    assert "is not there" in found["rows"][1]["detail"]
