"""The whole export of the test model: real engines, plans inside them, re-export, failures, and equal bytes."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest

from exporter.builder import parent as build
from exporter.builder import stage_engine as engines
from exporter.builder.child import BuildRequest
from exporter.builder.parent import build_engine
from exporter.bundle.vram import vram_estimate
from exporter.export import export_bundle
from exporter.graphs import stage_graph as graphs
from exporter.graphs.trace import trace_stage
from exporter.models import MODELS
from exporter.networks.stage_spec import StageSpec
from exporter.spec import export_spec
from plugins.errors import UserError
from plugins.plan import decode
from runtime.bundle import load_manifest, sha256_of, verify_files, write_manifest
from runtime.weights.storage import STAGES
from tests.support.checkpoints import canonical_state_dict, save_safetensors
from tests.support.exported import Exported
from tests.support.progress import SilentProgress

ENGINES = [f"{stage}.engine" for stage in STAGES]
KEPT = [f"{stage}.{kind}: unchanged, kept" for kind in ("onnx", "engine") for stage in STAGES]


def run(out: Path, **options: Any) -> tuple[Path, SilentProgress]:
    report = SilentProgress()
    return export_bundle(
        export_spec(**{"model": "wan-tiny", "gpu": "rtx5090", "out": out, "components": "dit", **options}), report
    ), report


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def reproducible(folder: Path) -> dict[str, str]:
    """Hashes of all files but TensorRT's logs, which tell how long things took."""
    return {name: digest for name, digest in contents(folder).items() if not name.endswith(".log")}


def request(folder: Path, onnx_file: Path, engine: Path) -> BuildRequest:
    log = str(folder / "build.log")
    return BuildRequest(onnx=str(onnx_file), engine=str(engine), log=log, gpu="rtx5090", profile=(16, 1000, 2000))


_TRACED: dict[Any, bytes] = {}


def traced(stage: StageSpec) -> bytes:
    """The stage's ONNX; a stage's function is one object for the same options."""
    key = (stage.name, stage.function, repr(stage.weights), repr(stage.inputs))
    if key not in _TRACED:
        _TRACED[key] = trace_stage(stage).SerializeToString()
    return _TRACED[key]


@pytest.fixture
def copy(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder holding a copy of the session's bundle, free to be exported over; each graph traced once."""
    monkeypatch.setattr(graphs, "trace_stage", lambda stage: onnx.ModelProto.FromString(traced(stage)))
    out = tmp_path / "engines"
    shutil.copytree(exported.folder, out / exported.folder.name)
    return out


def test_engines_are_real_and_the_manifest_verifies(exported: Exported) -> None:
    manifest = load_manifest(exported.folder)
    assert verify_files(exported.folder, manifest) == []
    assert [stage.name for stage in manifest.stages] == list(STAGES)
    for stage in manifest.stages:
        assert stage.engine in ENGINES
        assert (exported.folder / stage.engine).stat().st_size > 100_000
        assert stage.activation_bytes is not None
    assert list(manifest.weights.values()) == ["weights.safetensors"]
    assert manifest.has_proj_l is True
    activations = max(stage.activation_bytes or 0 for stage in manifest.stages)
    assert manifest.vram_estimate_bytes == vram_estimate(MODELS["wan-tiny"], "int8", activations)


def test_the_export_says_what_it_does(exported: Exported) -> None:
    assert exported.notes == []
    for stage in STAGES:
        kernels = ", compile kernels for sm_120" if stage == "block" else ""  # the others hold no ops of ours
        assert f"trace {stage}{kernels}" in exported.titles
        assert f"build {stage}.engine for rtx5090" in exported.titles


def test_plans_are_in_the_onnx_and_in_the_engine(exported: Exported) -> None:
    manifest = load_manifest(exported.folder)
    engine = (exported.folder / "block.engine").read_bytes()
    nodes = {node.name: node for node in onnx.load(exported.folder / "block.onnx").graph.node}
    assert len(manifest.plans) > 10
    for name, file in manifest.plans.items():
        data = (exported.folder / file).read_bytes()
        (attribute,) = (a for a in nodes[name].attribute if a.name == "plan")
        assert attribute.s == data, name
        assert data in engine, name
        assert decode(data).op == nodes[name].op_type
        assert decode(data).sm == 120


def test_every_layer_of_the_block_that_sees_tokens_is_ours(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "block.onnx").graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    constants = {initializer.name for initializer in graph.initializer}
    ours = set()
    for node in graph.node:
        tensors = [name for name in (*node.input, *node.output) if name and name not in constants]
        assert all(name in shapes for name in tensors), f"{node.name}: a tensor of unknown shape"
        if any(isinstance(dim, str) for name in tensors for dim in shapes[name]):
            assert node.domain == "turbotrt", f"{node.op_type} {node.name} touches tokens"
            ours.add(node.name)
    assert ours <= set(load_manifest(exported.folder).plans)
    assert {shapes[value.name][0] for value in graph.output} == {"L"}


def test_the_parsed_network_holds_our_plugins(exported: Exported, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    engine = tmp_path / "block.engine"
    asked = request(tmp_path, exported.folder / "block.onnx", engine)
    result = build_engine(asked, lambda done, total: seen.append((done, total)))
    assert sorted(result.plugin_layers) == sorted(load_manifest(exported.folder).plans)
    assert not any("PLUGIN" in layer for layer in result.other_layers)
    assert seen
    assert engine.stat().st_size > 100_000


def test_export_again_keeps_everything(exported: Exported, copy: Path) -> None:
    folder, report = run(copy)
    assert report.notes == KEPT
    assert report.titles == []
    before, after = load_manifest(exported.folder), load_manifest(folder)
    assert after == before
    assert verify_files(folder, after) == []
    assert [path.name for path in copy.iterdir()] == [folder.name]


def test_another_topk_rebuilds_the_block_only(exported: Exported, copy: Path) -> None:
    folder, report = run(copy, topk="0.2")
    assert report.notes == [note for note in KEPT if not note.startswith("block")]
    assert [t for t in report.titles if t.startswith("build")] == ["build block.engine for rtx5090"]
    before, after = load_manifest(exported.folder), load_manifest(folder)
    assert after.sampler.topk_milli == 200
    assert after.weights == before.weights
    assert after.files["weights.safetensors"] == before.files["weights.safetensors"]
    assert after.files["block.engine"].sha256 != before.files["block.engine"].sha256
    assert verify_files(folder, after) == []
    listed = {*after.files, "manifest.json", "embed.log", "block.log", "head.log"}
    assert {path.name for path in folder.iterdir()} <= listed, "files of the old plans stay behind"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no engine")], ids=["interrupt", "user-error"])
def test_a_failing_build_leaves_the_old_bundle(
    error: BaseException, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    before = contents(copy / "wan-tiny-rtx5090")
    monkeypatch.setattr(engines, "build_engine", fail)
    with pytest.raises(type(error)):
        run(copy, topk="0.3")
    assert contents(copy / "wan-tiny-rtx5090") == before
    assert [path.name for path in copy.iterdir()] == ["wan-tiny-rtx5090"]


def test_a_checkpoint_that_is_no_file_is_told_before_any_work(tmp_path: Path) -> None:
    report = SilentProgress()
    options: dict[str, Any] = {"model": "wan-tiny", "gpu": "rtx5090", "out": tmp_path}
    for option in ("checkpoint", "vae", "text_encoder"):
        with pytest.raises(UserError, match=r"There is no checkpoint at .*nowhere\.pth"):
            export_bundle(export_spec(**options | {option: str(tmp_path / "nowhere.pth")}), report)
    assert (report.titles, report.notes, list(tmp_path.iterdir())) == ([], [], [])


def test_a_bad_checkpoint_keeps_the_engines(tmp_path: Path, copy: Path) -> None:
    """And an engine that was damaged is built anew, its neighbours kept."""
    folder = copy / "wan-tiny-rtx5090"
    with (folder / "head.engine").open("r+b") as file:
        file.write(b"damaged")
    state = canonical_state_dict(MODELS["wan-tiny"])
    state["head.head.bias"][0] = math.nan  # which no header tells
    junk = save_safetensors(tmp_path / "junk.safetensors", state)
    report = SilentProgress()
    spec = export_spec(model="wan-tiny", gpu="rtx5090", out=copy, checkpoint=str(junk), components="dit")
    with pytest.raises(UserError, match=r"head\.head\.bias holds NaN"):
        export_bundle(spec, report)
    assert report.notes == [note for note in KEPT if note != "head.engine: unchanged, kept"]
    manifest = load_manifest(folder)
    assert verify_files(folder, manifest) == []
    assert [stage.engine for stage in manifest.stages] == ENGINES


def test_the_same_checkpoint_is_not_packed_again(exported: Exported, copy: Path) -> None:
    """Nor under another name; another checkpoint is, and so are weights that are not what the manifest says."""
    other = exported.checkpoint.with_name("same.safetensors")
    shutil.copy(exported.checkpoint, other)
    folder, report = run(copy, checkpoint=str(other))
    assert report.notes == [*KEPT, "weights.safetensors: unchanged, kept"]
    assert report.titles == ["hash same.safetensors", "verify weights.safetensors"]
    assert load_manifest(folder) == load_manifest(exported.folder)

    with (folder / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    _, report = run(copy, checkpoint=str(other))
    assert report.titles[-1] == "pack weights.safetensors"
    assert contents(folder)["weights.safetensors"] == contents(exported.folder)["weights.safetensors"]

    another = save_safetensors(copy.parent / "another.safetensors", canonical_state_dict(MODELS["wan-tiny"], 5))
    _, report = run(copy, checkpoint=str(another))
    assert report.titles == ["hash another.safetensors", "pack weights.safetensors"]
    manifest = load_manifest(folder)
    assert verify_files(folder, manifest) == []
    assert (
        manifest.files["weights.safetensors"].inputs
        != load_manifest(exported.folder).files["weights.safetensors"].inputs
    )


@pytest.mark.parametrize("harm", ["cut", "gone", "unlisted"])
def test_weights_outlive_a_damaged_manifest(harm: str, exported: Exported, copy: Path) -> None:
    folder = copy / exported.folder.name
    path = folder / "manifest.json"
    before = load_manifest(folder)
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        write_manifest(folder, msgspec.structs.replace(before, weights={}, has_proj_l=None))
    _, report = run(copy)
    assert "weights.safetensors: no manifest lists it; kept for what its header says, and hashed anew" in report.notes
    assert any("corrupt" in note for note in report.notes) == (harm == "cut")
    after = load_manifest(folder)
    assert after.weights == before.weights
    assert after.has_proj_l is True
    assert after.files["weights.safetensors"].sha256 == before.files["weights.safetensors"].sha256
    assert verify_files(folder, after) == []


def test_weights_that_the_engines_cannot_run_are_not_kept(copy: Path) -> None:
    folder, report = run(copy, linear="bf16", onnx_only=True)
    (note,) = (note for note in report.notes if note.startswith("weights.safetensors"))
    assert "not kept" in note
    assert "wan-tiny, int8, 1" in note
    assert load_manifest(folder).weights == {}
    assert not (folder / "weights.safetensors").exists()

    (folder / "weights.safetensors").write_bytes(b"not weights")
    _, report = run(copy, linear="bf16", onnx_only=True)
    assert "weights.safetensors: not listed, it is not a whole safetensors file" in report.notes
    assert (folder / "weights.safetensors").read_bytes() == b"not weights", "a file that no export wrote is gone"


def test_equal_bytes_in_another_folder(exported: Exported, tmp_path: Path) -> None:
    folder, _ = run(tmp_path / "elsewhere" / "deep", checkpoint=str(exported.checkpoint))
    assert reproducible(folder) == reproducible(exported.folder)


def test_an_engine_is_the_same_whatever_the_lengths_of_paths(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has two outputs of one shape, which TensorRT orders by their addresses."""
    made = set()
    for length in (1, 20, 60, 100, 150, 200):
        folder = tmp_path / ("x" * length)
        folder.mkdir()
        shutil.copy(exported.folder / "head.onnx", folder)
        monkeypatch.setenv("PYTHONPATH", "/" + "p" * (200 - length))
        build_engine(request(folder, folder / "head.onnx", folder / "head.engine"), lambda *_: None)
        made.add(sha256_of(folder / "head.engine"))
    assert len(made) == 1


_EXPORT = """
import sys
from pathlib import Path
import exporter, plugins.compile
from exporter.export import export_bundle
from exporter.spec import export_spec
from runtime.report import Silent
for module in (exporter, plugins.compile):
    assert Path(module.__file__).is_relative_to(Path.cwd()), module.__file__
spec = export_spec(
    model="wan-tiny", gpu="rtx5090", checkpoint=sys.argv[1], out=Path(sys.argv[2]), components="dit"
)
export_bundle(spec, Silent())
"""


def test_equal_bytes_from_another_source_tree(exported: Exported, elsewhere: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(elsewhere),
        "TRITON_CACHE_DIR": str(elsewhere.parent / "cache"),
        "PYTHONHASHSEED": "7",
    }
    command = [sys.executable, "-c", _EXPORT, str(exported.checkpoint), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert reproducible(tmp_path / "out" / exported.folder.name) == reproducible(exported.folder)


def test_h100_needs_tensorrt_and_says_so_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("traced before the check")

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(graphs, "trace_stage", never)
    with pytest.raises(UserError) as caught:
        run(tmp_path, gpu="h100")
    assert "tensorrt" in str(caught.value)
    assert "--onnx-only" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_h100_onnx_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    folder, report = run(tmp_path, gpu="h100", onnx_only=True)
    manifest = load_manifest(folder)
    assert verify_files(folder, manifest) == []
    assert manifest.plans
    assert {decode((folder / file).read_bytes()).sm for file in manifest.plans.values()} == {90}
    assert [stage.engine for stage in manifest.stages] == [None, None, None]
    assert not any(title.startswith("build") for title in report.titles)
    assert list(folder.glob("*.engine")) == []


def test_a_corrupt_onnx_gives_the_end_of_the_log(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes((exported.folder / "head.onnx").read_bytes()[:1000])
    with pytest.raises(UserError) as caught:
        build_engine(request(tmp_path, tmp_path / "bad.onnx", tmp_path / "bad.engine"), lambda *_: None)
    last = (tmp_path / "build.log").read_text().splitlines()[-1]
    assert last.strip()
    assert last in str(caught.value)
    assert "status 1" in str(caught.value)
    assert not (tmp_path / "bad.engine").exists()


def test_a_child_that_ends_with_an_exception(exported: Exported, tmp_path: Path) -> None:
    asked = request(tmp_path, exported.folder / "head.onnx", tmp_path / "nowhere" / "head.engine")
    with pytest.raises(UserError, match=r"Building head\.engine failed") as caught:
        build_engine(asked, lambda *_: None)
    assert "nowhere" in str(caught.value)


def test_a_child_that_is_killed(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libtensorrt_rtx.so on the path, TensorRT aborts its process at the first plugin."""
    without: Callable[[str], None] = lambda flavour: None  # noqa: E731
    monkeypatch.setattr(build, "library_folder", without)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match="was killed by signal 6"):
        build_engine(request(tmp_path, exported.folder / "block.onnx", tmp_path / "e.engine"), lambda *_: None)
    assert not (tmp_path / "e.engine").exists()
