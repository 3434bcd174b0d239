"""Every way in which a bundle may not fit: each says what was built for what, and the command that mends it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.main import get_command

from exporter.cli.app import app
from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime.backends.registry import backend_kind
from runtime.backends.tensorrt import TENSORRT, installed
from runtime.bundle import Manifest, load_manifest, write_manifest
from runtime.checks import check_engines, check_gpu, check_plugins, check_size, check_weights, rebuild_command
from runtime.pipeline import Pipeline
from tests.support.exported import Exported
from tests.support.random_bundle import make_random_bundle

Change = Callable[[Manifest], Manifest]


def tools(**versions: str | None) -> Change:
    def change(manifest: Manifest) -> Manifest:
        merged = {**manifest.tools, **{name.replace("_", "-"): value for name, value in versions.items()}}
        return msgspec.structs.replace(manifest, tools={k: v for k, v in merged.items() if v is not None})

    return change


@pytest.fixture
def bundle(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the session's real bundle, by links."""
    for file in exported.folder.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path


def change(bundle: Path, how: Change) -> Manifest:
    manifest = how(load_manifest(bundle))
    (bundle / "manifest.json").unlink()
    write_manifest(bundle, manifest)
    return manifest


def test_a_whole_bundle_passes(exported: Exported) -> None:
    manifest = load_manifest(exported.folder)
    assert check_engines(exported.folder, manifest, installed()) is None
    assert check_plugins(exported.folder, manifest) is None
    assert check_gpu(manifest, 120) is None
    assert check_weights(exported.folder, manifest, ["model"]) is None
    assert all(check_size(exported.folder, manifest, name) is None for name in manifest.files)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (tools(tensorrt_rtx="1.6.0.1"), ["tensorrt-rtx 1.6.0.1", "tensorrt-rtx 1.7", "turbotrt export"]),
        (tools(tensorrt_rtx=None), ["tensorrt-rtx unknown"]),
        (tools(turbotrt_plugin="0"), ["plugins 0", "plugins 1", "turbotrt export"]),
        (tools(turbotrt_plugin=None), ["plugins unknown"]),
    ],
)
def test_other_versions_are_told(bundle: Path, how: Change, words: list[str]) -> None:
    manifest = change(bundle, how)
    reason = TENSORRT.check(bundle, manifest) or ""
    for word in words:
        assert word in reason
    with pytest.raises(UserError) as told:
        Pipeline.load(bundle)
    assert str(told.value) == reason


def test_the_rebuild_command_is_one_that_the_command_line_takes(exported: Exported) -> None:
    for attention in ("sagesla", "sage", "original"):
        manifest = load_manifest(exported.folder)
        sampler = msgspec.structs.replace(manifest.sampler, attention=attention, topk_milli=125)
        words = shlex.split(rebuild_command(msgspec.structs.replace(manifest, sampler=sampler)))
        command: Any = get_command(app)
        context = command.commands[words[1]].make_context("export", words[2:])
        assert context.params["model"] == "wan-tiny"
        assert context.params["attention"] == attention
        assert context.params["topk"] == ("0.125" if attention == "sagesla" else None)


def test_the_rebuild_command_has_every_option_that_made_the_bundle(exported: Exported) -> None:
    manifest = load_manifest(exported.folder)
    embed, *others = manifest.stages
    changed = {
        "--onnx-only": (msgspec.structs.replace(embed, engine=None), *others),
        "--one-file": (*manifest.stages, msgspec.structs.replace(embed, name="one-file", expert="model")),
    }
    for option, stages in changed.items():
        assert option not in shlex.split(rebuild_command(manifest))
        made = msgspec.structs.replace(manifest, stages=stages)
        assert option in shlex.split(rebuild_command(made, exported.folder))
        assert ("--onnx-only" in rebuild_command(made, engines=True)) is False
        assert ("--checkpoint PATH_OR_HF_ID" in rebuild_command(made)) == (option == "--one-file")
    reason = check_engines(exported.folder, msgspec.structs.replace(manifest, stages=changed["--onnx-only"]), {})
    assert reason is not None
    remedy = reason.partition("remedy:")[2]
    assert f"--out {exported.folder.parent} " in remedy
    assert "--onnx-only" not in remedy


def test_damaged_weights_are_mended_by_packing(bundle: Path) -> None:
    """An export without a checkpoint would build engines and bring no weights back."""
    manifest = load_manifest(bundle)
    name = next(iter(manifest.weights.values()))
    (bundle / name).unlink()
    reason = check_size(bundle, manifest, name)
    assert reason is not None
    words = shlex.split(reason.partition("remedy:")[2])
    assert words[:2] == ["turbotrt", "pack"]
    command: Any = get_command(app)
    context = command.commands["pack"].make_context("pack", words[2:])
    assert (context.params["out"], context.params["model"]) == (bundle / "weights.safetensors", "wan-tiny")


@pytest.mark.parametrize(("capability", "found"), [(None, "no CUDA GPU"), (89, "compute capability 8.9")])
def test_another_gpu_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch, capability: int | None, found: str) -> None:
    monkeypatch.setattr("runtime.backends.tensorrt.compute_capability", lambda: capability)
    with pytest.raises(UserError) as told:
        Pipeline.load(bundle, backend="auto")
    assert "rtx5090, compute capability 12.0" in str(told.value)
    assert found in str(told.value)
    assert "torch" not in str(told.value)  # auto does not offer to fall back


def test_this_machine_has_no_gpu_and_auto_says_so(exported: Exported) -> None:
    from runtime.backends.cuda_device import compute_capability

    if compute_capability() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="no CUDA GPU"):
        Pipeline.load(exported.folder)


def test_tensorrt_that_is_not_installed_is_told(exported: Exported) -> None:
    manifest = load_manifest(exported.folder)
    reason = check_engines(exported.folder, manifest, {})
    assert reason is not None
    assert "pip install tensorrt-rtx==" in reason
    gpu = msgspec.structs.replace(manifest.gpu, flavour="tensorrt")
    reason = check_engines(exported.folder, msgspec.structs.replace(manifest, gpu=gpu), {"tensorrt-rtx": "1.7"})
    assert reason is not None
    assert "turbotrt[tensorrt]" in reason


def test_a_bundle_without_engines_is_told(tmp_path: Path) -> None:
    make_random_bundle(tmp_path, MODELS["wan-tiny"])
    with pytest.raises(UserError, match=r"--onnx-only(.|\n)*--backend torch"):
        Pipeline.load(tmp_path)


def test_a_bundle_without_weights_is_told(bundle: Path) -> None:
    change(bundle, lambda manifest: msgspec.structs.replace(manifest, weights={}))
    with pytest.raises(UserError, match=r"no weights(.|\n)*turbotrt pack"):
        Pipeline.load(bundle, backend=TORCH)


def test_damaged_files_are_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.safetensors: sha256(.|\n)*--verify never"):
        Pipeline.load(bundle, backend=TORCH)
    Pipeline.load(bundle, backend=TORCH, verify="never").close()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"weights\.safetensors is not the file"):
        Pipeline.load(bundle, backend=TORCH, verify="never")
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        Pipeline.load(bundle, backend=TORCH, verify="never")
    # Engines are looked at for the backend that loads them.
    monkeypatch.setattr("runtime.backends.tensorrt.compute_capability", lambda: 120)
    path.write_bytes(data)
    (bundle / "head.engine").unlink()
    with pytest.raises(UserError, match=r"head\.engine is not the file"):
        Pipeline.load(bundle, verify="never")


def test_a_plan_of_another_format_is_told(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    name = next(iter(manifest.plans.values()))
    data = (bundle / name).read_bytes()
    (bundle / name).unlink()
    (bundle / name).write_bytes(data[:4] + (99).to_bytes(4, "little") + data[8:])
    reason = check_plugins(bundle, manifest)
    assert reason is not None
    assert "99" in reason
    (bundle / name).write_bytes(b"something else")
    assert "a launch plan starts with 16 header bytes" in (check_plugins(bundle, manifest) or "")
    (bundle / name).write_bytes(data.replace(b"ceil_div", b"ceil_mul"))
    assert "does not decode" in (check_plugins(bundle, manifest) or "")
    (bundle / name).unlink()
    assert "no such file" in (check_plugins(bundle, manifest) or "")


def test_another_schema_is_told(bundle: Path) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(UserError, match="upgrade turbotrt"):
        Pipeline.load(bundle, backend=TORCH)


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    from dataclasses import replace

    small, wide = MODELS["wan-tiny"], replace(MODELS["wan-tiny"], name="tiny-wide", ffn_dim=640)
    make_random_bundle(tmp_path / "a", small)
    make_random_bundle(tmp_path / "b", wide)
    (tmp_path / "a" / "weights-model.safetensors").replace(tmp_path / "b" / "weights-model.safetensors")
    manifest = load_manifest(tmp_path / "b")
    files = {
        **manifest.files,
        "weights-model.safetensors": load_manifest(tmp_path / "a").files["weights-model.safetensors"],
    }
    write_manifest(tmp_path / "b", msgspec.structs.replace(manifest, files=files))
    with pytest.raises(UserError, match=r"blocks\.0\.ffn\.0\.int8_weight is int8 \[512, 256\]") as told:
        Pipeline.load(tmp_path / "b", backend=TORCH)
    assert "the engine takes int8 [640, 256]" in str(told.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        (20).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}',
        b"\2\0\0\0\0\0\0\0[]",
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(64),
    ],
)
def test_what_is_not_safetensors_is_told(tmp_path: Path, data: bytes) -> None:
    from runtime.weights.file import WeightsFile

    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        WeightsFile(tmp_path / "x")


def test_backends_are_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    here = [
        EntryPoint("torch", "exporter.torch_backend.backend:TORCH", "turbotrt.backends"),
        EntryPoint("broken", "exporter.torch_backend.backend:TorchRunner", "turbotrt.backends"),
    ]
    monkeypatch.setattr(
        "runtime.backends.registry.entry_points", lambda group: here if group == "turbotrt.backends" else []
    )
    assert backend_kind("torch") is TORCH
    assert backend_kind("auto") is backend_kind("tensorrt") is TENSORRT
    with pytest.raises(UserError, match="auto, tensorrt, broken, torch"):
        backend_kind("onnx")
    with pytest.raises(UserError, match="BackendKind"):
        backend_kind("broken")
