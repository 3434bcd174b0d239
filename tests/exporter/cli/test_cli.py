"""The command line: what it prints, its exit statuses, and what it must not import."""

from __future__ import annotations

import errno
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from exporter.cli.app import app, export_app
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.spec import ExportSpec, export_spec, parse_topk
from plugins.errors import UserError
from plugins.sms import SMS
from runtime.bundle import load_manifest, verify_files, write_manifest
from tests.support.bundle_factory import TINY, make_bundle, make_bundle_of, plan_bytes

HEAVY = ("torch", "triton", "onnx", "onnxscript", "onnx_graphsurgeon", "polygraphy", "tensorrt_rtx", "tensorrt", "cuda")
TINY_EXPORT = ["export", "--model", "wan-tiny", "--gpu", "rtx5090"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ExportSpec]:
    """The specs that reach export_bundle, which itself writes only what the closing lines read."""
    monkeypatch.chdir(tmp_path)
    specs: list[ExportSpec] = []
    module = ModuleType("exporter.export")

    def export_bundle(spec: ExportSpec, report: object) -> Path:
        specs.append(spec)
        return make_bundle_of(spec)

    module.__dict__["export_bundle"] = export_bundle
    monkeypatch.setitem(sys.modules, "exporter.export", module)
    return specs


@pytest.mark.parametrize(
    "arguments", [["--help"], ["export", "--help"], ["list"], ["list", "--json"], ["inspect", "BUNDLE"]]
)
def test_light_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    make_bundle(tmp_path)
    arguments = [str(tmp_path) if argument == "BUNDLE" else argument for argument in arguments]
    code = f"""
import sys
from exporter.cli.app import app
try:
    app(args={arguments!r}, prog_name="turbotrt")
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "[]"


def test_list_names_every_model_and_gpu() -> None:
    text = run("list").output
    for name in (*MODELS, *GPUS):
        assert name in text.split()
    rows = json.loads(run("list", "--json").stdout)
    assert {row["name"]: row["tokens"] for row in rows["models"]} == {m.name: m.tokens() for m in MODELS.values()}
    assert {row["name"]: row["sm"] for row in rows["gpus"]} == {gpu.name: gpu.sm for gpu in GPUS.values()}
    assert all("--onnx-only" in row["needs"] for row in rows["gpus"] if row["flavour"] == "tensorrt")


def test_gpu_table_holds_together() -> None:
    for gpu in GPUS.values():
        # Turing to Blackwell: INT8 is twice FP16, four times where FP32 accumulation runs at half rate (GeForce).
        rate = 4 if gpu.product.startswith("GeForce") else 2
        assert gpu.int8 == pytest.approx(rate * gpu.fp16, rel=0.02), gpu
        assert (gpu.fp8 is not None) == SMS[gpu.cubin_sm].fp8, gpu
        if gpu.fp8 is not None:
            assert gpu.fp8 == pytest.approx(2 * gpu.fp16, rel=0.02), gpu
    assert {gpu.cubin_sm for gpu in GPUS.values()} == set(SMS)


@pytest.mark.parametrize(
    ("text", "milli"),
    [("0.1", 100), (".1", 100), ("0.15", 150), ("0.001", 1), ("0.115", 115), ("1", 1000), ("1.000", 1000)],
)
def test_topk_is_read_exactly(text: str, milli: int) -> None:
    assert parse_topk(text) == milli


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "0.1005", "1.001", "2", "-0.1", "1e-1", "10%", "nan", "0,1", ".", "٠.١"]
)
def test_topk_out_of_range_or_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="topk"):
        parse_topk(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "--model", "wan3", "--gpu", "rtx5090"], ["wan3", "wan2.1-14b-720p"]),
        (["export", "--model", "wan-tiny", "--gpu", "gtx1080"], ["gtx1080", "rtx5090"]),
        ([*TINY_EXPORT, "--topk", "0.12345"], ["three digits"]),
        ([*TINY_EXPORT, "--attention", "flash"], ["flash", "sagesla, sla, sage, original"]),
        ([*TINY_EXPORT, "--attention", "sage", "--topk", "0.1"], ["dense"]),
        ([*TINY_EXPORT, "--linear", "fp8"], ["fp8", "int8, bf16"]),
        ([*TINY_EXPORT, "--one-file"], ["--checkpoint"]),
        ([*TINY_EXPORT, "--one-file", "--onnx-only", "--checkpoint", "x.pth"], ["--onnx-only"]),
        ([*TINY_EXPORT, "--checkpoint", " "], ["empty"]),
        ([*TINY_EXPORT, "--attention", "original", "--topk", "0.1"], ["original is dense"]),
        ([*TINY_EXPORT, "--max-size", "1280"], ["WIDTHxHEIGHT"]),
        ([*TINY_EXPORT, "--max-size", "1280x720x82"], ["4n+1"]),
        ([*TINY_EXPORT, "--max-size", "1280x722"], ["multiples of 16"]),
        ([*TINY_EXPORT, "--max-size", "1920x1088x81"], ["131,072", "171,360"]),
        (["inspect", "nowhere"], ["not a bundle"]),
        (["pack", "--checkpoint", "no.pth", "--model", "wan-tiny", "--out", "o.safetensors"], ["no.pth"]),
        (["pack", "--checkpoint", "no.pth", "--model", "wan9", "--out", "o.safetensors"], ["wan9"]),
        (["pack", "--checkpoint", "no.pth", "--model", "wan-tiny", "--out", "o.pth"], [".safetensors"]),
        (["pack", "--checkpoint", "x", "--model", "wan-tiny", "--out", "o.safetensors", "--linear", "fp8"], ["fp8"]),
        (
            ["pack", "--checkpoint", "x", "--model", "wan-tiny", "--out", "o.safetensors", "--attention", "x"],
            ["sagesla"],
        ),
        (["merge", "--base", "b.pth", "--sla", "s.pth", "--rcm", "r.pth", "--out", "m.safetensors"], ["b.pth"]),
        (["merge", "--base", "b.pth", "--sla", "s.pth", "--rcm", "r.pth", "--out", "m.pth"], [".safetensors"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_user_errors_are_one_message_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written was kept\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x.plan"), 2, "x.plan cannot be written.\n"),
        (UserError("No.", expected="yes"), 2, "No.\n  expected: yes\n"),
        (ModuleNotFoundError("no", name="onnxscript.rewriter"), 2, "turbotrt[export]"),
    ],
)
def test_what_ends_an_export_decides_the_status(
    exported: list[ExportSpec], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["exporter.export"], "export_bundle", fail)
    result = run(*TINY_EXPORT)
    assert result.exit_code == status
    assert message in result.stderr


def test_an_interruption_that_a_library_swallows_is_one_still(
    exported: list[ExportSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.onnx catches KeyboardInterrupt and fails in its own way."""

    def export_bundle(spec: ExportSpec, report: object) -> Path:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("the graph could not be exported") from None
        return spec.bundle_dir

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys.modules["exporter.export"], "export_bundle", export_bundle)
    result = run(*TINY_EXPORT)
    assert (result.exit_code, result.stderr) == (130, "interrupted; nothing half-written was kept\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_bug_is_not_taken_for_a_missing_extra(exported: list[ExportSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ModuleNotFoundError("no", name="exporter.nothing")

    monkeypatch.setattr(sys.modules["exporter.export"], "export_bundle", fail)
    assert isinstance(run(*TINY_EXPORT).exception, ModuleNotFoundError)


def test_export_defaults(exported: list[ExportSpec]) -> None:
    result = run(*TINY_EXPORT)
    assert result.exit_code == 0, result.output
    (spec,) = exported
    assert spec == ExportSpec(MODELS["wan-tiny"], GPUS["rtx5090"])
    assert spec.bundle_dir == Path("engines/wan-tiny-rtx5090")
    assert not spec.allow_missing_proj_l
    assert spec.flavour == "tensorrt_rtx"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--topk", "0.125", "--linear", "bf16", "--out", "a folder"],
        ["--attention", "sage", "--onnx-only"],
        ["--attention", "original", "--max-size", "256x160x33"],
        ["--attention", "sla", "--checkpoint", "none", "--components", "dit,text", "--text-linear", "int8"],
    ],
)
def test_last_lines_say_how_to_add_weights(exported: list[ExportSpec], options: list[str]) -> None:
    lines = run(*TINY_EXPORT, *options).stdout.splitlines()
    pack, again = (shlex.split(line) for line in lines[-2:])
    assert pack[:2] == ["turbotrt", "pack"]
    assert Path(pack[pack.index("--out") + 1]) == exported[0].bundle_dir / "weights.safetensors"
    assert run(*again[1:]).exit_code == 0
    assert exported[1] == replace(exported[0], checkpoint="PATH_OR_HF_ID")


def test_export_with_a_checkpoint_asks_for_nothing_more(exported: list[ExportSpec]) -> None:
    result = run(*TINY_EXPORT, "--checkpoint", "org/repo:model.pth")
    assert exported[0].checkpoint == "org/repo:model.pth"
    assert "turbotrt pack" not in result.stdout


def test_the_export_script_takes_the_same_arguments(exported: list[ExportSpec]) -> None:
    group: Any = get_command(app)
    script = get_command(export_app)
    assert [p.opts for p in script.params] == [p.opts for p in group.commands["export"].params]
    arguments = [*TINY_EXPORT[1:], "--topk", "0.2", "--out", "elsewhere"]
    assert CliRunner().invoke(export_app, arguments).exit_code == 0
    assert exported == [export_spec(model="wan-tiny", gpu="rtx5090", topk="0.2", out=Path("elsewhere"))]


def test_inspect_shows_a_good_bundle(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    result = run("inspect", tmp_path)
    assert result.exit_code == 0, result.output
    for text in ("wan-tiny", "sm_120", "block.engine", "123.5 MB", "Copy", "copy_kernel", "none yet", "1/200/4096"):
        assert text in result.stdout
    found = json.loads(run("inspect", tmp_path, "--json").stdout)
    assert found["problems"] == []
    assert found["manifest"]["model"]["name"] == "wan-tiny"
    (kernel,) = found["plans"]["block.plan"]["kernels"]
    assert kernel == {"name": "copy_kernel", "cubin_bytes": 4, "shared_bytes": 0, "registers": 32, "stack_bytes": 0}


def _truncate(folder: Path) -> None:
    (folder / "head.engine").write_bytes(b"")


def _remove(folder: Path) -> None:
    (folder / "block.plan").unlink()


def _spoil_plan(folder: Path) -> None:
    make_bundle(folder, plan=b"TRTP not a plan at all")


def _plan_of_another_gpu(folder: Path) -> None:
    make_bundle(folder, plan=plan_bytes(sm=86))


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (_truncate, "head.engine: 0 bytes"),
        (_remove, "block.plan: missing"),
        (_spoil_plan, "block.plan: launch plan"),
        (_plan_of_another_gpu, "block.plan: compiled for sm_86"),
    ],
)
def test_inspect_ends_with_status_1_on_a_problem(tmp_path: Path, harm: Callable[[Path], None], problem: str) -> None:
    make_bundle(tmp_path)
    harm(tmp_path)
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert problem in result.stdout
    found = run("inspect", tmp_path, "--json")
    assert found.exit_code == 1
    assert len(json.loads(found.stdout)["problems"]) == 1


def test_inspect_takes_no_markup_from_a_bundle(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path)
    write_manifest(tmp_path, msgspec.structs.replace(manifest, tools={"[red]tool[/]": ":smile: [/nothing]"}))
    (tmp_path / "[bold]stray").write_bytes(b"")
    result = run("inspect", tmp_path)
    assert result.exit_code == 0, result.output
    assert "[red]tool[/] :smile: [/nothing]" in result.stdout
    assert "not in the manifest: [bold]stray" in result.stdout


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """wan-tiny checkpoints in bf16: base and rcm without proj_l, sla with it; all random."""
    import torch
    from safetensors.torch import save_file

    from exporter.checkpoint.table import checkpoint_tensors
    from exporter.networks.dit.weights import PROJ_L_SOURCE

    folder = tmp_path_factory.mktemp("checkpoints")
    generator = torch.Generator().manual_seed(0)
    paths = {}
    for role in ("base", "sla", "rcm"):
        tensors = {
            name: (torch.randn(spec.shape, generator=generator) * 0.05).to(torch.bfloat16)
            for name, spec in checkpoint_tensors(MODELS["wan-tiny"]).items()
            if role == "sla" or PROJ_L_SOURCE not in name
        }
        paths[role] = folder / f"{role}.safetensors"
        save_file(tensors, paths[role])
    return paths


def test_pack_into_a_bundle_lists_the_weights(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    before = make_bundle(tmp_path)
    out = tmp_path / "weights.safetensors"
    result = run("pack", "--checkpoint", checkpoints["sla"], "--model", "wan-tiny", "--out", out)
    assert result.exit_code == 0, result.output
    manifest = load_manifest(tmp_path)
    assert manifest.weights == {"model": "weights.safetensors"}
    assert manifest.has_proj_l is True
    assert verify_files(tmp_path, manifest) == []
    assert manifest.stages == before.stages
    assert run("inspect", tmp_path).exit_code == 0
    other = tmp_path / "other.safetensors"
    assert run("pack", "--checkpoint", checkpoints["sla"], "--model", "wan-tiny", "--out", other).exit_code == 0
    out.unlink()  # no more the bundle's, which is whole without it
    assert run("inspect", tmp_path).exit_code == 0


def test_pack_alone_needs_consent_to_miss_proj_l(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    arguments = [
        "pack",
        "--checkpoint",
        checkpoints["base"],
        "--model",
        "wan-tiny",
        "--out",
        tmp_path / "w.safetensors",
    ]
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "proj_l" in refused.stderr
    assert not (tmp_path / "w.safetensors").exists()
    accepted = run(*arguments, "--attention", "sla")
    assert accepted.exit_code == 0, accepted.output
    assert "no proj_l" in accepted.stderr
    assert (tmp_path / "w.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("wan2.1-14b-480p", [], "another model"), ("wan-tiny", ["--linear", "bf16"], "other Linears")],
)
def test_pack_refuses_a_bundle_of_other_weights(
    tmp_path: Path, checkpoints: dict[str, Path], name: str, options: list[str], words: str
) -> None:
    make_bundle(tmp_path, model=msgspec.structs.replace(TINY, name=name))
    before = (tmp_path / "manifest.json").read_bytes()
    out = tmp_path / "weights.safetensors"
    result = run("pack", "--checkpoint", checkpoints["sla"], "--model", "wan-tiny", "--out", out, *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert not out.exists()


def test_pack_names_each_experts_file(tmp_path: Path) -> None:
    from exporter.packing.dit import weight_paths

    out = tmp_path / "weights.safetensors"
    names = {expert: path.name for expert, path in weight_paths(out, MODELS["wan2.2-i2v-a14b-720p"]).items()}
    assert names == {name: f"weights-{name}.safetensors" for name in ("high-noise", "low-noise")}
    assert weight_paths(out, MODELS["wan-tiny"]) == {"model": out}


def test_merge_writes_the_authors_formula(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    import torch
    from safetensors.torch import load_file

    out = tmp_path / "merged.safetensors"
    roles = [item for role, path in checkpoints.items() for item in (f"--{role}", path)]
    result = run("merge", *roles, "--out", out, "--weight", "0.5")
    assert result.exit_code == 0, result.output
    base, sla, rcm = (load_file(path) for path in checkpoints.values())
    name = "blocks.1.ffn.0.weight"
    b, s, r = (tensors[name].to(torch.float64) for tensors in (base, sla, rcm))
    torch.testing.assert_close(
        load_file(out)[name].to(torch.float64), b + 0.5 * (s - b) + (r - b), rtol=2**-8, atol=1e-6
    )
