"""--one-file: the composed graph computes what the stages do one after another, and real engines hold the weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

from exporter.builder import one_file
from exporter.builder.child import BuildRequest
from exporter.builder.parent import build_engine
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.cli.app import app
from exporter.export import export_bundle
from exporter.gpus import GPUS
from exporter.graphs import stage_graph as graphs
from exporter.models import MODELS
from exporter.networks.dit.weights import packed_bytes, stage_weights
from exporter.spec import ExportSpec, export_spec
from plugins.errors import UserError
from plugins.onnx_schema import register_schemas
from plugins.plan import decode
from runtime import numerics
from runtime.bundle import load_manifest, verify_files
from tests.support.checkpoints import canonical_state_dict, save_safetensors
from tests.support.exported import Exported
from tests.support.onnx_reference import run_onnx
from tests.support.progress import SilentProgress

TINY = MODELS["wan-tiny"]
SHAPE = (5, 10, 16)  # latent T, H, W: 200 tokens
Tensors = dict[str, torch.Tensor]


def run(out: Path, **options: Any) -> tuple[Path, SilentProgress]:
    report = SilentProgress()
    asked = {"model": "wan-tiny", "gpu": "rtx5090", "out": out, "one_file": True, "components": "dit", **options}
    return export_bundle(export_spec(**asked), report), report


@pytest.fixture(scope="module")
def whole(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's bundle exported again with --one-file, which adds one engine to it. Read-only."""
    out = tmp_path_factory.mktemp("whole")
    shutil.copytree(exported.folder, out / exported.folder.name)
    folder, report = run(out, checkpoint=str(exported.checkpoint))
    assert [title for title in report.titles if title.startswith(("build", "trace", "pack"))] == [
        "build one-file.engine for rtx5090"
    ]
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """An output folder holding a copy of that bundle, free to be exported over."""
    shutil.copytree(whole, tmp_path / "engines" / whole.name)
    return tmp_path / "engines"


def test_the_bundle_lists_the_engine(whole: Path) -> None:
    manifest = load_manifest(whole)
    assert verify_files(whole, manifest) == []
    assert [stage.name for stage in manifest.stages] == ["embed", "block", "head", "one-file"]
    stage = manifest.stages[-1]
    assert (stage.engine, stage.onnx, stage.expert) == ("one-file.engine", "one-file.onnx", "model")
    assert [t.name for t in stage.inputs] == ["tokens", "time_features", "text", "cos", "sin", "noise", "a", "b", "c"]
    assert [t.name for t in stage.outputs] == ["tokens_out", "v_out"]
    assert stage.activation_bytes
    assert list(whole.parent.iterdir()) == [whole], "scratch folders stay behind"


def test_the_engine_holds_the_weights_and_every_plan(whole: Path) -> None:
    engine = (whole / "one-file.engine").read_bytes()
    weights, data = SafetensorsFile(whole / "weights.safetensors"), (whole / "weights.safetensors").read_bytes()
    for name in weights.tensors:
        start, size = weights.span(name)
        if name.startswith("blocks."):  # embed's and head's are cast or laid out anew by the builder
            assert data[start : start + size] in engine, name
    stages = {node.name: node for node in onnx.load(whole / "block.onnx").graph.node if node.domain == "turbotrt"}
    nodes = [n for n in onnx.load(whole / "one-file.onnx", load_external_data=False).graph.node if n.domain]
    assert len(nodes) == TINY.layers * len(stages)
    for node in nodes:
        scope, layer, rest = node.name.split(".", 2)
        assert scope == "blocks"
        assert 0 <= int(layer) < TINY.layers
        (plan,), (wanted,) = ([a.s for a in n.attribute if a.name == "plan"] for n in (node, stages[f"block.{rest}"]))
        assert plan == wanted
        assert decode(plan).op == node.op_type
        assert plan in engine


def test_the_parsed_network_holds_all_plugin_layers(whole: Path, tmp_path: Path) -> None:
    asked = BuildRequest(
        onnx=str(whole / "one-file.onnx"),
        engine=str(tmp_path / "e.engine"),
        log=str(tmp_path / "log"),
        gpu="rtx3090",
        profile=(16, 200, 400),
    )
    plugins = build_engine(asked, lambda *_: None).plugin_layers
    names = [node for node in load_manifest(whole).plans if node.startswith("block.")]
    assert sorted(plugins) == sorted(n.replace("block.", f"blocks.{i}.") for i in range(TINY.layers) for n in names)


def test_the_graph_computes_the_stages_one_after_another(whole: Path) -> None:
    register_schemas()
    onnx.checker.check_model(str(whole / "one-file.onnx"), full_check=True)
    weights = load_file(whole / "weights.safetensors")
    generator = torch.Generator().manual_seed(2)
    cos, sin = (torch.from_numpy(table) for table in numerics.rope_tables(SHAPE))
    scalars = {name: torch.tensor([value]) for name, value in (("a", 0.7), ("b", -0.3), ("c", 0.2))}
    given: Tensors = {
        "tokens": torch.randn(200, 64, generator=generator),
        "time_features": torch.from_numpy(numerics.time_features(0.853)),
        "text": torch.randn(512, 4096, generator=generator).bfloat16(),
        "cos": cos,
        "sin": sin,
        "noise": torch.randn(200, 64, generator=generator),
        **scalars,
    }

    def stage(name: Any, prefix: str, **activations: torch.Tensor) -> list[torch.Tensor]:
        own = {weight: weights[prefix + weight] for weight in stage_weights(TINY, name)}
        return run_onnx(whole / f"{name}.onnx", {**activations, **own})

    def pick(*names: str) -> Tensors:
        return {name: given[name] for name in names}

    x, context, e, e0 = stage("embed", "", **pick("tokens", "time_features", "text"))
    for layer in range(TINY.layers):
        (x,) = stage("block", f"blocks.{layer}.", x=x, context=context, e0=e0, cos=cos, sin=sin)
    tokens, v = stage("head", "", x=x, e=e, **pick("tokens", "noise", "a", "b", "c"))
    got = run_onnx(whole / "one-file.onnx", given)
    assert torch.equal(got[0], tokens)
    assert torch.equal(got[1], v)
    assert float(v.std()) > 0.1


def test_export_again_keeps_it(whole: Path, exported: Exported, copy: Path) -> None:
    folder, report = run(copy, checkpoint=str(exported.checkpoint))
    assert report.notes[-1] == "one-file.engine: unchanged, kept"
    assert not any(title.startswith("build") for title in report.titles)
    assert load_manifest(folder) == load_manifest(whole)
    assert verify_files(folder, load_manifest(folder)) == []


def _another_topk(copy: Path, exported: Exported) -> dict[str, Any]:
    return {"topk": "0.2", "checkpoint": str(exported.checkpoint)}


def _another_checkpoint(copy: Path, exported: Exported) -> dict[str, Any]:
    return {"checkpoint": str(save_safetensors(copy.parent / "a.safetensors", canonical_state_dict(TINY, 8)))}


def _spoilt(copy: Path, exported: Exported) -> dict[str, Any]:
    (copy / "wan-tiny-rtx5090" / "one-file.engine").write_bytes(b"spoilt")
    return {"checkpoint": str(exported.checkpoint)}


@pytest.mark.parametrize("change", [_another_topk, _another_checkpoint, _spoilt])
def test_it_is_built_anew(change: Callable[..., dict[str, Any]], whole: Path, exported: Exported, copy: Path) -> None:
    folder, report = run(copy, **change(copy, exported))
    assert report.titles[-1] == "build one-file.engine for rtx5090"
    before, after = load_manifest(whole), load_manifest(folder)
    assert verify_files(folder, after) == []
    assert [stage.name for stage in after.stages].count("one-file") == 1
    if change is not _spoilt:
        assert after.files["one-file.engine"].sha256 != before.files["one-file.engine"].sha256


def test_packing_other_weights_removes_it(copy: Path) -> None:
    folder = copy / "wan-tiny-rtx5090"
    checkpoint = save_safetensors(copy.parent / "a.safetensors", canonical_state_dict(TINY, 9))
    arguments = ["pack", "--checkpoint", str(checkpoint), "--model", "wan-tiny"]
    app([*arguments, "--out", str(folder / "weights.safetensors")], standalone_mode=False)
    manifest = load_manifest(folder)
    assert [stage.name for stage in manifest.stages] == ["embed", "block", "head"]
    assert list(folder.glob("one-file.[eo]*")) == []
    assert verify_files(folder, manifest) == []


def test_two_experts_get_an_engine_each(tmp_path: Path) -> None:
    experts = ("high-noise", "low-noise")
    model = replace(TINY, name="wan-tiny-i2v", in_channels=36, experts=experts, boundary=0.9)
    for seed, name in enumerate(("high", "low")):
        save_safetensors(tmp_path / "c" / f"{name}.safetensors", canonical_state_dict(model, seed))
    spec = ExportSpec(
        model,
        GPUS["rtx4090"],
        checkpoint=str(tmp_path / "c"),
        out=tmp_path / "out",
        components=("dit",),
        one_file=True,
    )
    folder = export_bundle(spec, SilentProgress())
    manifest = load_manifest(folder)
    assert verify_files(folder, manifest) == []
    wanted = [(expert, f"one-file-{expert}.engine") for expert in experts]
    assert [(stage.expert, stage.engine) for stage in manifest.stages if stage.expert] == wanted
    for expert, name in wanted:
        engine, weights = (folder / name).read_bytes(), folder / manifest.weights[expert]
        start, size = SafetensorsFile(weights).span("blocks.1.ffn.2.int8_weight")
        for other in experts:
            data = (folder / manifest.weights[other]).read_bytes()[start : start + size]
            assert (data in engine) == (other == expert)


def test_too_little_memory_is_said_first(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "trace_stage", lambda *_: pytest.fail("traced before the check"))
    monkeypatch.setattr(one_file, "available_memory", lambda: 24 * 10**9)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "out", model="wan2.1-14b-720p", checkpoint=str(exported.checkpoint))
    assert "3.3 × 14.54 GB of weights + 0.5 GB = 48.5 GB available" in str(caught.value)
    assert "24.0 GB" in str(caught.value)
    assert "drop --one-file" in str(caught.value)
    assert list(tmp_path.iterdir()) == []

    spec = export_spec(model="wan-tiny", gpu="rtx5090", checkpoint="c", out=tmp_path, one_file=True)
    bound = int(one_file.RAM_FACTOR * packed_bytes(TINY)) + one_file.RAM_BASE
    monkeypatch.setattr(one_file, "available_memory", lambda: bound)
    one_file.check_memory(spec)
    monkeypatch.setattr(one_file, "available_memory", lambda: bound - 1)
    with pytest.raises(UserError):
        one_file.check_memory(spec)


def test_available_memory_is_of_this_machine() -> None:
    page, free, whole = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    assert 0.5 * free * page <= one_file.available_memory() <= whole * page
