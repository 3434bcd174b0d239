"""turbotrt export --text-linear int8 end to end: packed values, what the bundle says, re-export, a prompt encoded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

for _module in ("onnx_graphsurgeon", "tensorrt_rtx", "tokenizers"):
    pytest.importorskip(_module)

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.checkpoint.source import bands
from exporter.checkpoint.text_names import text_expected, text_sources
from exporter.checkpoint.torch_file import TorchFile
from exporter.cli.app import app
from exporter.export import export_bundle
from exporter.models import MODELS
from exporter.networks.text.encoder import TEXT_ENCODERS, text_weights
from exporter.networks.weight_spec import WeightSpec
from exporter.spec import export_spec
from runtime.bundle import load_manifest, verify_files
from runtime.checks import rebuild_command
from tests.support.exported import Exported
from tests.support.media_bundle import random_tensors, write_tokenizer
from tests.support.progress import SilentProgress
from tests.support.quantized_text import quantized

TINY = TEXT_ENCODERS[MODELS["wan-tiny"].text_encoder]
OPTIONS: dict[str, Any] = {"model": "wan-tiny", "gpu": "rtx5090", "components": "dit,text", "text_linear": "int8"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """umT5-tiny in Wan's form, bf16, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("t5")
    table = {name: WeightSpec(e.shape, "bf16") for name, e in text_expected(TINY).items()}
    torch.save(random_tensors(table, 5), folder / "models_t5_tiny.pth")
    write_tokenizer(folder / "tokenizer.json")
    return folder / "models_t5_tiny.pth"


@pytest.fixture(scope="module")
def bundle(
    exported: Exported, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SilentProgress]:
    """The session's bundle, with the text encoder added to it."""
    folder = Path(shutil.copytree(exported.folder, tmp_path_factory.mktemp("engines") / exported.folder.name))
    return folder, again(folder, text_encoder=str(checkpoint))


@pytest.fixture
def copy(bundle: tuple[Path, SilentProgress], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle[0], tmp_path / "engines" / bundle[0].name))


def again(folder: Path, **options: Any) -> SilentProgress:
    report = SilentProgress()
    export_bundle(export_spec(**{**OPTIONS, "out": folder.parent, **options}), report)
    return report


def test_the_packed_values(bundle: tuple[Path, SilentProgress], checkpoint: Path) -> None:
    """Block-INT8 of q|k|v and gate|fc1 as wholes; the embedding and the rest as in the bf16 file."""
    state = torch.load(checkpoint)
    table = text_weights(TINY)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    packed = {n: torch.cat([state[s] for s in text_sources(n)]).to(dtypes[w.dtype]) for n, w in table.items()}
    want, have = quantized(packed, TINY), load_file(bundle[0] / "text.safetensors")
    assert set(have) == set(want) == set(text_weights(TINY, "int8"))
    for name, tensor in want.items():
        assert have[name].dtype == tensor.dtype
        assert torch.equal(have[name], tensor), name
    with safe_open(bundle[0] / "text.safetensors", "pt") as file:
        assert file.metadata()["linear"] == "int8"


def test_the_bundle_says_its_mode_and_its_engine_holds_the_plans(bundle: tuple[Path, SilentProgress]) -> None:
    folder, report = bundle
    manifest = load_manifest(folder)
    assert verify_files(folder, manifest) == []
    assert manifest.text_linear == "int8"
    assert rebuild_command(manifest).endswith("--components dit,text --text-linear int8")
    assert "trace text_block, compile kernels for sm_120" in report.titles
    assert "trace text_norm" in report.titles
    engine = (folder / "text_block.engine").read_bytes()
    nodes = [node for node in manifest.plans if node.startswith("text_block.")]
    assert len(nodes) == 8
    for node in nodes:
        assert (folder / manifest.plans[node]).read_bytes() in engine
    shown = CliRunner().invoke(app, ["inspect", str(folder)])
    assert shown.exit_code == 0, shown.output
    assert "text linear int8" in shown.stdout
    assert "text_block.01.BlockInt8Gemm" in shown.stdout
    planned = CliRunner().invoke(app, ["plan", "--bundle", str(folder), "--vram", "1GB"])
    assert planned.exit_code == 0, planned.output


def test_the_same_again_makes_nothing(copy: Path, bundle: tuple[Path, SilentProgress], checkpoint: Path) -> None:
    """The checkpoint is hashed, not packed; damaged weights are packed again, to the same bytes."""
    report = again(copy, text_encoder=str(checkpoint))
    assert report.titles == [f"hash {checkpoint.name}", "verify text.safetensors"]
    assert "text_block.engine: unchanged, kept" in report.notes
    assert "text.safetensors: unchanged, kept" in report.notes
    assert load_manifest(copy) == load_manifest(bundle[0])
    with (copy / "text.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert again(copy, text_encoder=str(checkpoint)).titles[-1] == "pack text.safetensors"
    assert load_manifest(copy) == load_manifest(bundle[0])
    assert verify_files(copy, load_manifest(copy)) == []


def test_the_other_mode_makes_the_block_again_and_leaves_the_weights_behind(copy: Path, checkpoint: Path) -> None:
    report = again(copy, text_linear="bf16")
    built = [title for title in report.titles if title.startswith(("trace", "build"))]
    assert built == ["trace text_block", "build text_block.engine for rtx5090"]
    (note,) = (note for note in report.notes if note.startswith("text.safetensors"))
    assert "not kept, its header says" in note
    manifest = load_manifest(copy)
    assert (manifest.text_linear, manifest.media_weights) == ("bf16", {})
    assert not [node for node in manifest.plans if node.startswith("text")]
    assert verify_files(copy, manifest) == []
    assert "hash models_t5_tiny.pth" in again(copy, text_linear="bf16", text_encoder=str(checkpoint)).titles
    assert load_file(copy / "text.safetensors")["blocks.0.ffn.fc2.weight"].dtype == torch.bfloat16


def test_a_prompt_is_encoded_by_the_torch_backend(
    bundle: tuple[Path, SilentProgress], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle as exported gives finite embeddings near those of the bf16 functions."""
    from importlib.metadata import EntryPoint

    from runtime.media.text.prompt import PromptTokenizer
    from runtime.media.video_pipeline import VideoPipeline
    from runtime.numerics import from_bf16_bits

    point = EntryPoint("torch", "exporter.torch_backend.backend:TORCH", "turbotrt.backends")
    monkeypatch.setattr("runtime.backends.registry.entry_points", lambda group: [point])
    with VideoPipeline.load(bundle[0], backend="torch") as pipeline:
        (embeds,) = pipeline.embeddings(["A cat on a surfboard"])
    assert embeds.shape == (len(PromptTokenizer(bundle[0] / "tokenizer.json")("A cat on a surfboard")), 4096)
    values = torch.from_numpy(from_bf16_bits(embeds))
    assert bool(torch.isfinite(values).all())
    assert 0.5 < float(values.std()) < 2


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_large_tensors_are_read_by_rows(form: str, tmp_path: Path) -> None:
    """Bands are whole 128-row blocks but for the last, and together the tensor; small ones come whole."""
    large = torch.arange(3 * 2**22, dtype=torch.int32).reshape(-1, 4096)[: 2**11 + 900]
    state = {"large": large.float(), "small": torch.arange(5.0)}
    path = tmp_path / f"a.{form}"
    if form == "pth":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    source = TorchFile(path) if form == "pth" else SafetensorsFile(path)
    found = list(bands(source, "large"))
    assert [len(band) for band in found] == [2048, 900]
    assert torch.equal(torch.cat(found), state["large"])
    assert [band.tolist() for band in bands(source, "small")] == [[0, 1, 2, 3, 4]]
