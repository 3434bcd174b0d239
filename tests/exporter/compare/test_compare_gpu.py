"""turbotrt compare on a CUDA GPU: compiled plans take part, and the sweep is timed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("polygraphy")
pytest.importorskip("matplotlib")

from exporter.compare.run import compare
from exporter.compare.spec import CompareSpec, Runner
from exporter.export import export_bundle
from exporter.gpus import GPUS
from exporter.models import model_named
from exporter.spec import export_spec
from runtime.bundle import load_manifest
from tests.support.checkpoints import canonical_state_dict, save_safetensors
from tests.support.exported import Exported
from tests.support.media_bundle import add_media
from tests.support.progress import SilentProgress

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """wan-tiny's graphs, plans and weights for the RTX 5090, without engines: no machine with a GPU need have
    TensorRT for RTX.
    """
    pytest.importorskip("onnx_graphsurgeon")
    folder = tmp_path_factory.mktemp("graphs")
    checkpoint = save_safetensors(folder / "checkpoint.safetensors", canonical_state_dict(model_named("wan-tiny")))
    spec = export_spec(
        model="wan-tiny", gpu="rtx5090", checkpoint=str(checkpoint), out=folder, components="dit", onnx_only=True
    )
    return Exported(export_bundle(spec, SilentProgress()), checkpoint, [], [])


def test_plans_take_part(exported: Exported, tmp_path: Path) -> None:
    spec = CompareSpec(
        exported.folder,
        str(exported.checkpoint),
        against=("fp32", "quantized", "plans"),
        steps=2,
        size=(256, 160),
        sweep=(100, 500),
        out=tmp_path / "report",
    )
    found = compare(spec, SilentProgress())
    assert found.offenders == []
    ops = [row for row in found.rows if row.level == "op" and row.candidate == "plans"]
    assert {row.layer for row in ops} == {0, 1}
    assert any(row.value > 0 for row in ops), "kernels do not sum in the oracle's order"
    assert all(row.bound is not None and row.bound > 1e-6 for row in ops)
    assert found.sweep is not None
    assert not found.sweep.estimated
    assert all(point.seconds is not None and point.seconds > 0 for point in found.sweep.points)
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor != 120:
        assert any("compiled for sm_" in note for note in found.notes)


def test_the_engines_of_an_rtx_part(exported: Exported, tmp_path: Path) -> None:
    """Built here for the GPU at hand and run by Polygraphy's runner."""
    major, minor = torch.cuda.get_device_capability()
    fitting = [g for g in GPUS.values() if g.sm == 10 * major + minor and g.flavour == "tensorrt_rtx"]
    if not fitting:
        pytest.skip(f"TensorRT for RTX builds no engine for sm_{major}{minor}")
    pytest.importorskip("tensorrt_rtx")
    checkpoint = str(exported.checkpoint)
    spec = export_spec(model="wan-tiny", gpu=fitting[0].name, checkpoint=checkpoint, out=tmp_path, components="dit")
    bundle = export_bundle(spec, SilentProgress())
    found = compare(CompareSpec(bundle, checkpoint, steps=2, out=tmp_path / "report"), SilentProgress())
    assert found.passed
    assert "tensorrt" not in found.left_out
    assert {row.level for row in found.rows if row.candidate == "tensorrt"} >= {"block", "step", "free", "frame"}


def test_videos_are_decoded_unasked(exported: Exported, tmp_path: Path) -> None:
    """By the torch VAE on the GPU, one decoder for every runner."""
    folder = Path(shutil.copytree(exported.folder, tmp_path / "bundle"))
    add_media(folder, load_manifest(folder))
    runners: tuple[Runner, ...] = ("fp32", "quantized", "plans")
    spec = CompareSpec(folder, str(exported.checkpoint), runners, steps=1, frames=9, out=tmp_path / "report")
    found = compare(spec, SilentProgress())
    assert found.passed
    assert list(found.video) == list(runners)
    assert len([row for row in found.rows if row.level == "video"]) == 3 * 9
    assert found.video["fp32"][8].float().std() > 10, "a picture, not one colour"
