"""The selftest's pieces: what is planned and exported, what a machine is tested by, times, references, messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

pytest.importorskip("polygraphy")

from exporter.cli.app import app
from exporter.doctor.gpu import exports_for
from exporter.gpus import GPUS
from exporter.selftest import exports, times
from exporter.selftest.alone import relative_l2
from exporter.selftest.plan import PARTS, groups, kinds_of
from exporter.selftest.references import CHANNELS, TOLERANCE, key, reference
from exporter.selftest.rows import Case, Host, Machine, Row, located, named_op, named_stage
from exporter.selftest.run import Selftest, SelftestSpec
from exporter.selftest.step import Setting, backend_of
from exporter.selftest.variants import EMBEDDED, LARGE, QUICK, SIZES, SMALL, VARIANTS
from exporter.spec import ExportSpec
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime.backends.cuda_device import compute_capability
from runtime.bundle import COMPONENTS
from tests.support.paths import ROOT
from tests.support.progress import SilentProgress
from tests.support.selftest_references import DISTINCT, bundle, latents

HOSTS: tuple[Host, ...] = ("python", "library")
SMALLER = SIZES[1]


@pytest.mark.parametrize("name", DISTINCT)
def test_shipped_latents_are_the_torch_backends(name: str, tmp_path: Path) -> None:
    variant = DISTINCT[name]
    got = latents(tmp_path, variant, [SMALLER])[SMALLER]
    assert relative_l2(got[:CHANNELS], reference(variant, SMALLER)) < TOLERANCE


def test_every_variant_has_shipped_latents_of_every_size() -> None:
    assert {key(VARIANTS[name], SIZES[0]) for name in SMALL} == set(DISTINCT)
    for name in SMALL:
        for width, height, frames in SIZES:
            shape = reference(VARIANTS[name], (width, height, frames)).shape
            assert shape == (CHANNELS, (frames - 1) // 4 + 1, height // 8, width // 8)


def test_every_kind_of_attention_and_linears_is_tested_and_every_component() -> None:
    from exporter.networks.dit.options import ATTENTIONS
    from exporter.spec import LINEARS

    kinds = {(VARIANTS[name].attention, VARIANTS[name].linear) for name in SMALL}
    assert kinds == {(attention, linear) for attention in ATTENTIONS for linear in LINEARS}
    assert {part for name in SMALL for part in VARIANTS[name].components} == set(COMPONENTS)
    assert {VARIANTS[name].text_linear for name in SMALL if "text" in VARIANTS[name].components} == set(LINEARS)


def test_what_is_planned() -> None:
    found = groups((), HOSTS, quick=False)
    cases = [case for group in found for case in group]
    assert len(set(cases)) == len(cases)
    assert all(len({(case.part, case.host) for case in group}) == 1 for group in found)
    assert [case.variant for case in cases if case.part == "export"] == [*SMALL, *LARGE]
    for host in HOSTS:
        for part in ("stages", "generate"):
            assert [case.variant for case in cases if (case.part, case.host) == (part, host)] == list(SMALL)
        assert [case.variant for case in cases if (case.part, case.host) == ("times", host)] == list(LARGE)
    embedded = [case for group in groups((), HOSTS, quick=False, embeds=True) for case in group]
    assert [case for case in embedded if case not in cases] == [
        Case(part="export", variant=EMBEDDED),
        Case(part="generate", variant=EMBEDDED, host="embedded"),
    ]
    inside = [case for group in groups(("embedded",), HOSTS, quick=False, embeds=True) for case in group]
    assert {case.variant for case in inside} == {EMBEDDED}
    assert groups((EMBEDDED,), (), quick=False, embeds=True) == [[Case(part="export", variant=EMBEDDED)]]
    parts = [group[0].part for group in found]
    assert parts.index("cold") < parts.index("warm")


def test_what_is_chosen() -> None:
    quick = [case for group in groups((), HOSTS, quick=True) for case in group]
    assert {case.variant for case in quick} == set(QUICK)
    assert "times" not in {case.part for case in quick}
    timed = [case for group in groups(("times", "library"), HOSTS, quick=True) for case in group]
    assert [(case.part, case.host) for case in timed] == 2 * [("export", "")] + 2 * [("times", "library")]
    one = [case for group in groups(("stages", "sla-bf16"), HOSTS, quick=False) for case in group]
    assert [(case.part, case.variant, case.host) for case in one] == [
        ("export", "sla-bf16", ""),
        ("stages", "sla-bf16", "python"),
        ("stages", "sla-bf16", "library"),
    ]
    assert groups((), (), quick=True) == [[Case(part="export", variant=QUICK[0])]]
    with pytest.raises(UserError, match=r"no such part or bundle(.|\n)*got: *blocks"):
        kinds_of(["blocks"])


@pytest.mark.parametrize("name", ["image-to-video", LARGE[0]])
def test_an_export_is_that_of_a_user(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ExportSpec] = []

    def export(spec: ExportSpec, report: Any) -> Path:
        asked.append(spec)
        return bundle(tmp_path, VARIANTS[QUICK[0]])

    monkeypatch.setattr("exporter.export.export_bundle", export)
    setting = Setting(folder=str(tmp_path), gpu="rtx4090", onnx_only=True)
    (step,) = exports.steps(setting, Case(part="export", variant=name))
    (found,) = step.run()
    (spec,) = asked
    assert found.detail == "graphs and plans, no engines"
    assert spec.gpu is GPUS["rtx4090"]
    assert spec.bundle_dir == setting.bundle(VARIANTS[name])
    assert spec.onnx_only
    if name in LARGE:
        assert (spec.checkpoint, spec.components) == (None, ("dit",))
    else:
        assert spec.components == COMPONENTS
        assert [Path(path).is_file() for path in str(spec.checkpoint).split(",")] == [True, True]


def test_a_block_and_a_step_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = VARIANTS[QUICK[0]]
    monkeypatch.setattr(times, "backend_of", lambda case: TORCH)  # on the CPU too
    monkeypatch.setattr(times, "estimated_step_ms", lambda model, gpu, options, length: 4.0 * length)
    setting = Setting(folder=str(tmp_path), gpu="rtx5090")
    setting.bundle(variant).mkdir(parents=True)
    bundle(setting.bundle(variant), variant)
    (step,) = times.steps(setting, Case(part="times", variant=variant.name, host="torch"))
    (found,) = step.run()
    assert found.name == "128×80×17, L = 200"
    figures = {name: value or 0.0 for name, value in found.figures.items()}
    assert figures["step_ms"] > figures["block_ms"] > 0
    assert (figures["estimated_step_ms"], figures["estimated_block_ms"]) == (800.0, 200.0)
    monkeypatch.setattr("exporter.torch_backend.device.TorchDevice.free_bytes", lambda self: 1 << 20)
    (step,) = times.steps(setting, Case(part="times", variant=variant.name, host="torch"))
    (found,) = step.run()
    assert found.skipped
    assert "are free" in found.detail


def selftest_on(machine: Machine, **options: Any) -> tuple[Selftest, SilentProgress]:
    report = SilentProgress()
    test = Selftest(SelftestSpec(Path("none.json"), **options), report, lambda row: None)
    test.report.machine = machine
    return test, report


def machine(gpu: str, sm: int, library: str | None = None, *, torch: bool = True) -> Machine:
    packages = {"tensorrt-rtx": "1.7", **({"torch": "2"} if torch else {})}
    facts: dict[str, Any] = {"system": "Linux", "python": "3.12", "packages": packages, "plugin_library": library}
    return Machine(gpu=gpu, sm=sm, exports=exports_for(gpu, sm), **facts)


def test_who_runs_our_ops_on_which_gpu() -> None:
    test, report = selftest_on(machine("NVIDIA GeForce RTX 5090", 120, "libturbotrt_plugins.so 1"))
    assert test._hosts(test._target()) == ("python", "library")
    assert report.notes == []
    test, report = selftest_on(machine("NVIDIA GeForce RTX 5060 Ti", 120))
    gpu = test._target()
    assert gpu.sm == 120
    assert test._hosts(gpu) == ("python",)
    assert report.notes[0].startswith(f"NVIDIA GeForce RTX 5060 Ti is tested as {gpu.name}, of the same SM")
    assert "library" in report.notes[1]
    test, report = selftest_on(machine("NVIDIA H100 80GB HBM3", 90))
    gpu = test._target()
    assert (gpu.name, test._hosts(gpu), test._builds(gpu)) == ("h100", ("torch",), False)
    assert "NO ENGINE IS TESTED: H100 SXM takes those of tensorrt, which is not installed." in report.notes[1]
    test, report = selftest_on(machine("NVIDIA GeForce RTX 5090", 120), gpu="rtx4090")
    gpu = test._target()
    assert (test._hosts(gpu), test._builds(gpu)) == ((), True)
    assert "nothing is run" in report.notes[0]
    with pytest.raises(UserError, match=r"no kernels for NVIDIA T4(.|\n)*sm_75"):
        selftest_on(machine("NVIDIA T4", 75))[0]._target()


def test_without_torch_what_needs_it_is_left_out() -> None:
    """The rest imports none of it: a bundle made elsewhere is run on the base install."""
    bare = machine("NVIDIA GeForce RTX 5090", 120, torch=False)
    test, _ = selftest_on(bare, bundles=Path("bundles"))
    left = [part for part in PARTS if part != "machine" and not test._without_torch(part)]
    assert left == ["export", "generate", "cold", "warm"]
    with pytest.raises(UserError, match="makes its bundles with torch"):
        selftest_on(bare)[0]._without_torch("export")
    modules = ", ".join(
        f"exporter.selftest.{name}" for name in ("run", "table", "child", "hosts", "exports", "generations")
    )
    code = f"import sys; sys.modules['torch'] = None; import {modules}, exporter.cli.selftest"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_torch_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    with pytest.raises(UserError, match="torch sees none"):
        backend_of(Case(part="stages", variant=QUICK[0], host="torch"))


def test_without_a_gpu_it_says_what_can_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compute_capability() is not None:
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["selftest"])
    assert result.exit_code == 2
    assert "there is none here" in result.stderr
    assert "turbotrt selftest --gpu rtx5090 --keep DIR" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_message_names() -> None:
    assert named_op("[ERROR] BlockInt8GemmResidual: refused") == "BlockInt8GemmResidual"
    assert named_op("nothing of ours") is None
    assert named_stage("in runtime.engine, line 3") is None
    assert named_stage("decode_next.engine could not run.") == "decode_next"
    row = Row(part="stages", variant="a", name="block", status="failed", stage="block")
    right = Row(part="ops", variant="a", name="RmsNorm x", status="passed", op="RmsNorm")
    assert located(row, [right]).detail == "alone, the plan of every op is right"
    assert located(row, [right]).op is None
    assert located(row, [replace(right, status="failed")]).op == "RmsNorm"


def test_nan_is_infinitely_far() -> None:
    want = np.ones(4, np.float32)
    assert relative_l2(want * 1.5, want) == pytest.approx(0.5)
    assert relative_l2(np.array([1, 1, np.nan, 1], np.float32), want) == float("inf")
