"""The bundle's lines for Polygraphy: those that need no GPU are typed as README.txt has them, and work."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

pytest.importorskip("polygraphy")

from exporter.bundle import polygraphy_files as files
from plugins import library
from plugins.library import library_path
from runtime.bundle import load_manifest
from runtime.weights.storage import STAGES
from tests.support.compared import typed
from tests.support.exported import Exported

built = pytest.mark.skipif(library_path() is None, reason="the plugin library is not built (make native)")


def test_the_readme_has_every_line(exported: Exported) -> None:
    manifest = load_manifest(exported.folder)
    readme = (exported.folder / "README.txt").read_text()
    lines = [*files.input_lines(STAGES), *files.build_lines(manifest, STAGES), *files.run_lines(manifest, STAGES)]
    lines += [*files.look_lines(), *files.setup_lines(manifest.gpu.flavour)]
    assert len(lines) == 3 + 3 + 3 + 1 + 4
    assert all(f"  {line}\n" in readme for line in lines)
    assert "network" not in (exported.folder / "polygraphy_scripts.py").read_text()
    assert {"README.txt", "polygraphy_scripts.py"} <= set(manifest.files)


@built
def test_polygraphy_builds_every_stage_with_our_plugins(exported: Exported, tmp_path: Path) -> None:
    """From the ONNX file and the library alone: engines of the size that export's have, for the same GPU."""
    manifest = load_manifest(exported.folder)
    lines = [*files.setup_lines(manifest.gpu.flavour), *files.build_lines(manifest, STAGES)]
    said = typed(lines, exported.folder, tmp_path)
    assert "Setting 1 target compute capabilities: [(12, 0)]" in said
    for stage in STAGES:
        (engine,) = tmp_path.glob(f"*/{stage}.engine")
        data = engine.read_bytes()
        assert len(data) == manifest.files[f"{stage}.engine"].bytes
        plans = [file for node, file in manifest.plans.items() if node.startswith(f"{stage}.")]
        assert all((exported.folder / file).read_bytes() in data for file in plans)
    assert sum(node.startswith("block.") for node in manifest.plans) > 10


def test_polygraphy_reads_the_inputs(exported: Exported, tmp_path: Path) -> None:
    manifest = load_manifest(exported.folder)
    lines = [*files.setup_lines(manifest.gpu.flavour), *files.input_lines(STAGES), *files.look_lines()]
    seen = typed(lines, exported.folder, tmp_path)
    (block,) = (stage for stage in manifest.stages if stage.name == "block")
    for tensor in block.inputs:
        shape = tuple(256 if dim == "L" else dim for dim in tensor.dims)
        assert f"{tensor.name} [dtype=" in seen
        assert f"shape={shape}" in seen, tensor.name


@built
@pytest.mark.parametrize("stage", STAGES)
def test_the_lines_that_run_go_as_far_as_the_gpu(exported: Exported, tmp_path: Path, stage: str) -> None:
    """Polygraphy takes every argument, reads the inputs and loads the library; deserializing needs a driver."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    manifest = load_manifest(exported.folder)
    lines = [*files.setup_lines(manifest.gpu.flavour), *files.input_lines([stage]), *files.run_lines(manifest, [stage])]
    seen = typed(lines, exported.folder, tmp_path, status=1)
    assert f"Loading plugin library: {library_path()}" in seen
    assert "cudaError 35" in seen
    assert "Could not deserialize engine" in seen


def test_engines_that_are_not_in_the_bundle_are_those_just_built(exported: Exported) -> None:
    manifest = load_manifest(exported.folder)
    stages = tuple(msgspec.structs.replace(stage, engine=None) for stage in manifest.stages)
    gpu = msgspec.structs.replace(manifest.gpu, name="h100", sm=90, flavour="tensorrt")
    manifest = msgspec.structs.replace(manifest, stages=stages, gpu=gpu)
    (build,), (run,) = files.build_lines(manifest, ["block"]), files.run_lines(manifest, ["block"])
    assert "--compute-capabilities" not in build
    assert build.endswith(" -o $WORK/block.engine")
    assert run.startswith("polygraphy run $WORK/block.engine ")


def test_without_a_library_the_lines_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "_BUILT", tmp_path / library.FILE_NAME)
    assert library.main() == 2
    assert "There is no plugin library in this installation" in capsys.readouterr().err


@built
def test_the_lines_after_a_comparison_are_polygraphys(exported: Exported, tmp_path: Path) -> None:
    """Every argument is known to it: it writes the script that would run."""
    *before, last = files.recorded_lines(exported.folder, tmp_path)
    typed([*before, f"{last} --gen-script $WORK/script.py"], exported.folder, tmp_path)
    (script,) = tmp_path.glob("*/script.py")
    for word in ("block_inputs.json", "block_outputs.json", "block.engine", "LoadPlugins", "SnrCompareFunc"):
        assert word in script.read_text()


@built
@pytest.mark.gpu
def test_polygraphy_runs_every_stage(exported: Exported, tmp_path: Path) -> None:
    manifest = load_manifest(exported.folder)
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor != manifest.gpu.sm:
        pytest.skip(f"the bundle's engines run on sm_{manifest.gpu.sm}, this GPU is sm_{major}{minor}")
    lines = [*files.setup_lines(manifest.gpu.flavour), *files.input_lines(STAGES), *files.run_lines(manifest, STAGES)]
    typed(lines, exported.folder, tmp_path)
    assert len(list(tmp_path.glob("*/*_outputs.json"))) == 3
