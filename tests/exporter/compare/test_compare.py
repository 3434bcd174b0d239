"""turbotrt compare: a clean bundle passes, a planted error is found at its op and block, the report can be read."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("polygraphy")
pytest.importorskip("matplotlib")
import onnx
from typer.testing import CliRunner

from exporter.bench.estimate import step_ms as estimate_step_ms
from exporter.cli.app import app
from exporter.compare import roster as roster_module
from exporter.compare.machines.machine import BlockInput
from exporter.compare.machines.torch_machines import StageMachine
from exporter.compare.spec import Comparison, Row, runner_named
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.networks.dit.options import BlockOptions
from plugins.errors import UserError
from tests.support.compared import Tensors, polygraphy, run, weights_changed
from tests.support.exported import Exported


@pytest.fixture(scope="module", autouse=True)
def _on_the_cpu(no_gpu: None) -> None:
    """These tests are of a machine without a GPU, whatever the one they run on."""


@pytest.fixture(scope="module")
def clean(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """The untouched bundle, all that runs here, two steps, blocks at the second, a sweep."""
    out = tmp_path_factory.mktemp("compare") / "report"
    shares = (250, 500, 1000)
    return run(exported.folder, exported.checkpoint, out, steps=2, block_step=1, sweep=shares, report=True), out


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.folder, tmp_path / "bundle"))


def worst_op(found: Comparison) -> Row:
    return next(row for row in found.offenders if row.level == "op")


def ops_over(found: Comparison) -> set[tuple[str, int | None]]:
    return {(row.place, row.layer) for row in found.offenders if row.level == "op"}


# A clean bundle.


def test_a_clean_bundle_passes(clean: tuple[Comparison, Path]) -> None:
    found, _ = clean
    assert found.offenders == []
    pairs = {(row.candidate, row.reference) for row in found.rows if row.level == "block"}
    assert pairs == {("quantized", "fp32"), ("onnx", "fp32"), ("onnx", "quantized")}
    assert {row.layer for row in found.rows if row.level == "op"} == {0, 1}
    assert not any(row.value for row in found.rows if row.level == "op"), "the same arithmetic, the same bits"
    against_fp32 = [row for row in found.rows if row.reference == "fp32" and row.level in ("block", "step", "free")]
    assert all(row.value > 1e-4 for row in against_fp32), "INT8 costs something"
    assert len([row for row in found.rows if row.level == "frame"]) == 3 * 5


def test_every_op_is_seen(clean: tuple[Comparison, Path], exported: Exported) -> None:
    found, _ = clean
    nodes = [n.op_type for n in onnx.load(exported.folder / "block.onnx").graph.node if n.domain == "turbotrt"]
    for candidate in ("quantized", "onnx"):
        places = [r.place for r in found.rows if r.level == "op" and r.candidate == candidate and r.layer == 0]
        calls = {place.partition(":")[0] for place in places}
        assert sorted(re.split(r"[ (]", call)[0] for call in calls) == sorted(nodes)
        assert set(found.rounding[candidate]) == set(found.accumulated[candidate]) == set(places)


def test_what_the_machine_cannot_run_is_said(clean: tuple[Comparison, Path]) -> None:
    found, _ = clean
    assert set(found.left_out) == {"plans", "tensorrt", "video"}
    assert all("GPU" in found.left_out[name] for name in ("plans", "tensorrt"))
    assert "VAE" in found.left_out["video"]


def test_rounding_explains_the_error(clean: tuple[Comparison, Path]) -> None:
    """The last op's summed-up error against unrounded fp32 is the block's against the plain model."""
    found, _ = clean
    last = list(found.accumulated["quantized"].values())[-1]
    (row,) = (r for r in found.rows if r.level == "block" and r.candidate == "quantized" and r.layer == found.inspected)
    assert last == pytest.approx(row.value, rel=1e-3)


def test_keeping_more_blocks_comes_nearer(clean: tuple[Comparison, Path]) -> None:
    found, _ = clean
    assert found.sweep is not None
    assert [point.topk_milli for point in found.sweep.points] == [250, 500, 1000]
    errors = [point.relative_l2 for point in found.sweep.points]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1]


def test_the_time_of_a_sweep_is_an_estimate_and_says_so(clean: tuple[Comparison, Path]) -> None:
    found, out = clean
    assert found.sweep is not None
    assert found.sweep.estimated
    assert found.sweep.untimed is None
    want = [
        estimate_step_ms(MODELS["wan-tiny"], GPUS["rtx5090"], BlockOptions(topk_milli=milli), 200) / 1e3
        for milli in (250, 500, 1000)
    ]
    assert [point.seconds for point in found.sweep.points] == want == sorted(want)
    data = json.loads((out / "comparison.json").read_bytes())["sweep"]
    assert (data["estimated"], data["device"]) == (True, "rtx5090")
    assert "ESTIMATED for rtx5090" in (out / "report.html").read_text()


# Planted errors.


def graph_changed(bundle: Path, change: Callable[[Any], None]) -> None:
    proto = onnx.load(bundle / "block.onnx")
    change(proto.graph)
    onnx.save(proto, bundle / "block.onnx")


def test_a_flipped_scale(copied: Path, exported: Exported, tmp_path: Path) -> None:
    def flip(tensors: Tensors) -> None:
        tensors["blocks.1.ffn.0.scale"][1, 0] *= -1

    weights_changed(copied, flip)
    found = run(copied, exported.checkpoint, tmp_path / "out")
    assert {layer for _, layer in ops_over(found)} == {1}
    assert {place.partition(" ")[2] for place, _ in ops_over(found)} == {"ffn.0"}
    assert found.inspected == 1
    assert any(row.level == "block" and row.layer == 1 for row in found.offenders)


@pytest.mark.parametrize("module", ["cross_attn.o", "ffn.2"])
def test_a_dropped_bias(copied: Path, exported: Exported, tmp_path: Path, module: str) -> None:
    """Small beside the residual it is added to, and found all the same."""
    weights_changed(copied, lambda tensors: tensors[f"blocks.0.{module}.bias"].zero_())
    found = run(copied, exported.checkpoint, tmp_path / "out", against=("fp32", "quantized"))
    (op,) = ops_over(found)
    assert op[1] == 0
    assert op[0].endswith(f" {module}")


def test_wrong_rotary_tables(copied: Path, exported: Exported, tmp_path: Path) -> None:
    """In the graph: the node takes cos for sin."""

    def swap(graph: Any) -> None:
        (node,) = (node for node in graph.node if {"cos", "sin"} <= set(node.input))
        turned = {"cos": "sin", "sin": "cos"}
        node.input[:] = [turned.get(name, name) for name in node.input]

    graph_changed(copied, swap)
    found = run(copied, exported.checkpoint, tmp_path / "out", against=("fp32", "onnx"))
    places = {place.partition(":")[0] for place, _ in ops_over(found)}
    assert len(places) == 1
    assert "Rope" in places.pop()
    assert {row.candidate for row in found.offenders} == {"onnx"}


def test_top_k_off_by_one(copied: Path, exported: Exported, tmp_path: Path) -> None:
    """In the graph: of 4 key blocks it keeps 2, not 1."""

    def keep_more(graph: Any) -> None:
        (attribute,) = (a for node in graph.node for a in node.attribute if a.name == "topk_milli")
        attribute.i = 500

    graph_changed(copied, keep_more)
    found = run(copied, exported.checkpoint, tmp_path / "out", against=("fp32", "onnx"))
    assert worst_op(found).candidate == "onnx"
    assert {place.partition(" ")[0] for place, _ in ops_over(found)} == {"SageSLAQuantize"}


class LateTables(StageMachine):
    """Its rotary tables are one token late in block 1."""

    def block_by(self, evaluate: Any, expert: str, layer: int, given: BlockInput) -> Any:
        if self.name == "quantized" and layer == 1:
            given = BlockInput(given.x, given.context, given.e0, given.cos.roll(1, 0), given.sin.roll(1, 0))
        return super().block_by(evaluate, expert, layer, given)


class OneMoreKeyBlock(StageMachine):
    """It keeps 2 of 4 key blocks in block 1, where it should keep 1."""

    def block_by(self, evaluate: Any, expert: str, layer: int, given: BlockInput) -> Any:
        if self.name == "quantized" and layer == 1:
            more = self.with_options(replace(self.options, topk_milli=500))
            return StageMachine.block_by(more, evaluate, expert, layer, given)
        return super().block_by(evaluate, expert, layer, given)


@pytest.mark.parametrize(("wrong", "op"), [(LateTables, "QkNormRope"), (OneMoreKeyBlock, "SageSLAQuantize")])
def test_an_error_in_one_block_only(
    wrong: type[StageMachine], op: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "StageMachine", wrong)
    found = run(exported.folder, exported.checkpoint, tmp_path / "out", against=("fp32", "quantized"))
    assert {(place.partition(" ")[0], layer) for place, layer in ops_over(found)} == {(op, 1)}
    assert found.inspected == 1


def test_the_fp32_model_can_keep_the_same_blocks(exported: Exported, tmp_path: Path) -> None:
    """Then a candidate that selects other blocks shows no error by it."""
    options: dict[str, Any] = {"against": ("fp32", "quantized"), "size": (192, 128), "frames": 17}
    apart = run(exported.folder, exported.checkpoint, tmp_path / "apart", **options)
    same = run(exported.folder, exported.checkpoint, tmp_path / "same", same_blocks=True, **options)

    def worst(found: Comparison) -> float:
        return max(row.value for row in found.rows if row.level == "block")

    assert same.passed
    assert worst(same) <= worst(apart)
    assert "keeps the key blocks" in same.notes[-1]


# Without a checkpoint, and mistakes.


def test_without_a_checkpoint(exported: Exported, tmp_path: Path) -> None:
    found = run(exported.folder, None, tmp_path / "out")
    assert found.passed
    assert "checkpoint" in found.left_out["fp32"]
    assert {(row.candidate, row.reference) for row in found.rows if row.level == "step"} == {("onnx", "quantized")}


def test_one_runner_is_too_few(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        run(exported.folder, exported.checkpoint, tmp_path, against=("quantized",))
    with pytest.raises(UserError, match="cannot be compared"):
        runner_named("fp64")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")], ids=lambda error: type(error).__name__)
def test_an_early_end_leaves_no_empty_folder(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = tmp_path / "reports" / "today"

    def fail(*_: Any) -> None:
        assert out.is_dir()  # a folder that cannot be is told before the work
        raise error

    monkeypatch.setattr("exporter.compare.run.compare_steps", fail)
    options: dict[str, Any] = {"against": ("fp32", "quantized")}
    with pytest.raises(type(error)):
        run(exported.folder, exported.checkpoint, out, **options)
    assert list(tmp_path.iterdir()) == []
    out.mkdir(parents=True)  # not this run's
    with pytest.raises(type(error)):
        run(exported.folder, exported.checkpoint, out, **options)
    assert out.is_dir()
    (tmp_path / "reports" / "mine.txt").touch()
    out.rmdir()
    with pytest.raises(type(error)):
        run(exported.folder, exported.checkpoint, out, **options)
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["mine.txt"]


def test_the_command_line(copied: Path, exported: Exported, tmp_path: Path) -> None:
    weights_changed(copied, lambda tensors: tensors["blocks.1.self_attn.o.bias"].add_(3))
    words = [
        "compare",
        "--bundle",
        str(copied),
        "--checkpoint",
        str(exported.checkpoint),
        "--steps",
        "1",
        "--against",
        "fp32,quantized",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 1, done.output
    shown = done.output.splitlines()
    first = next(line for line in shown if line.startswith("block ") and " op " in line)
    assert first.startswith("block 1, ")
    assert "self_attn.o" in first
    assert "over their bounds" in done.output
    assert "--load-inputs" in done.output
    wrong = CliRunner().invoke(app, [*words, "--size", "800"])
    assert wrong.exit_code == 2
    assert "WIDTHxHEIGHT" in wrong.output


# What it writes.


def test_polygraphy_reads_the_results(clean: tuple[Comparison, Path]) -> None:
    from polygraphy.comparator import RunResults

    _, out = clean
    steps = RunResults.load(str(out / "steps.json"))
    assert [name for name, _ in steps.items()] == ["fp32", "quantized", "onnx"]
    assert [set(run) for run in steps["onnx"]] == [{"v", "tokens"}] * 2
    assert "tokens" in polygraphy("inspect", "data", str(out / "steps.json"))
    assert "modulation" in polygraphy("inspect", "data", str(out / "block_inputs.json"))
    frames, block = str(out / "frames.json"), str(out / "block_outputs.json")
    polygraphy("run", "--load-outputs", frames, "--compare", "cosine_similarity", "--validate")
    polygraphy("run", "--load-outputs", block, "--compare", "snr", "--validate")


def test_the_recorded_block_is_what_the_engine_takes(clean: tuple[Comparison, Path], exported: Exported) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    _, out = clean
    ((feed,), outputs) = load_json(str(out / "block_inputs.json")), RunResults.load(str(out / "block_outputs.json"))
    graph = onnx.load(exported.folder / "block.onnx").graph
    assert list(feed) == [value.name for value in graph.input]
    assert feed["x"].dtype == torch.bfloat16
    assert [name for name, _ in outputs.items()] == ["fp32", "quantized", "onnx"]
    assert list(outputs["onnx"][0]) == [value.name for value in graph.output]


def test_the_summary_is_json(clean: tuple[Comparison, Path]) -> None:
    found, out = clean
    data = json.loads((out / "comparison.json").read_bytes())
    assert data["passed"] is True
    assert len(data["rows"]) == len(found.rows)
    assert data["facts"]["model"] == "wan-tiny"


def test_the_report_needs_no_network(clean: tuple[Comparison, Path]) -> None:
    text = (clean[1] / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http:" not in text
    assert "https:" not in text
    images = re.findall(r"data:image/([a-z+]+);base64,([^\"]+)", text)
    assert len(images) >= 5
    for kind, data in images:
        start = base64.b64decode(data)[:200]
        assert start.startswith(b"\x89PNG") if kind == "png" else b"<?xml" in start


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_report_renders(clean: tuple[Comparison, Path], tmp_path: Path) -> None:
    from matplotlib.image import imread

    shot = tmp_path / "shot.png"
    page = (clean[1] / "report.html").as_uri()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        profile,
        "--window-size=1180,3600",
        f"--screenshot={shot}",
        page,
    ]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    pixels = imread(shot)
    assert pixels.shape[:2] == (3600, 1180)
    rows = pixels[..., :3].std(axis=(1, 2))
    assert (rows > 0.01).mean() > 0.5, "most rows of the page show something"
    dumped = subprocess.run(
        [*command[:-2], "--dump-dom", page], capture_output=True, text=True, check=True, timeout=120
    )
    assert "within bounds" in dumped.stdout
    assert "Final latents" in dumped.stdout
