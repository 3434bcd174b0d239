"""Text encoder and VAE in an export: published formats, strict checks, real engines, a video from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

for _module in ("onnx_graphsurgeon", "tensorrt_rtx", "diffusers", "transformers", "tokenizers", "av"):
    pytest.importorskip(_module)

import av
import msgspec
from polygraphy.json import load_json
from typer.testing import CliRunner

from exporter.builder.child import BuildRequest
from exporter.builder.parent import build_engine
from exporter.bundle import polygraphy_files as files
from exporter.checkpoint.text_names import text_name
from exporter.checkpoint.vae_names import vae_name
from exporter.cli.app import app
from exporter.export import export_bundle
from exporter.models import MODELS
from exporter.networks.text.encoder import TEXT_ENCODERS
from exporter.networks.vae.spec import VAES
from exporter.packing.component import ComponentCheckpoint, pack_component
from exporter.packing.formats import component_format
from exporter.packing.media import kept_media
from exporter.spec import export_spec
from plugins.errors import UserError
from plugins.library import library_path
from runtime.bundle import Manifest, StageEntry, load_manifest, sha256_of, verify_files
from runtime.weights.file import WeightsFile
from tests.support.compared import typed
from tests.support.exported import Exported
from tests.support.media_bundle import write_tokenizer
from tests.support.progress import SilentProgress

TINY, GPU = MODELS["wan-tiny"], "rtx5090"
TEXT, VAE = TEXT_ENCODERS[TINY.text_encoder], VAES[TINY.vae]


def media_of(manifest: Manifest) -> list[StageEntry]:
    return [stage for stage in manifest.stages if stage.component != "dit"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers pipeline's folders, as its own libraries save them, and Wan's two .pth files beside each other."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("release")
    config = transformers.UMT5Config(
        vocab_size=TEXT.vocabulary,
        d_model=TEXT.dim,
        d_kv=TEXT.head_dim,
        d_ff=TEXT.ffn_dim,
        num_layers=TEXT.layers,
        num_heads=TEXT.heads,
    )
    text = transformers.UMT5EncoderModel(config)
    vae = diffusers.AutoencoderKLWan(base_dim=VAE.base, num_res_blocks=VAE.residuals)
    text.save_pretrained(folder / "diffusers" / "text_encoder")
    vae.save_pretrained(folder / "diffusers" / "vae")
    (folder / "diffusers" / "tokenizer").mkdir()
    write_tokenizer(folder / "diffusers" / "tokenizer" / "tokenizer.json")
    (folder / "wan").mkdir()
    named = {text_name(name): tensor.clone() for name, tensor in text.state_dict().items()}
    torch.save(named, folder / "wan" / "models_t5_tiny.pth")
    named = {vae_name(name, VAE): tensor for name, tensor in vae.state_dict().items()}
    torch.save(named, folder / "wan" / "Wan2.1_VAE.pth")
    return folder


@pytest.mark.parametrize("component", ["text", "vae"])
def test_both_publications_pack_to_the_same_bytes(release: Path, tmp_path: Path, component: Any) -> None:
    form = component_format(TINY, component)
    packed = []
    for publication in ("diffusers", "wan"):
        out = tmp_path / f"{publication}.safetensors"
        pack_component(ComponentCheckpoint(release / publication, form), form, out)
        packed.append(out.read_bytes())
    assert packed[0] == packed[1]
    file = WeightsFile(tmp_path / "wan.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in file.tensors.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in form.packed.items()
    }


def test_packed_values_are_the_checkpoints(release: Path, tmp_path: Path) -> None:
    """q, k and v lie under each other, the gate above the linear half, all rounded to bf16; norms stay fp32."""
    from safetensors.torch import load_file

    form = component_format(TINY, "text")
    pack_component(ComponentCheckpoint(release / "wan", form), form, tmp_path / "text.safetensors")
    have, source = load_file(tmp_path / "text.safetensors"), torch.load(release / "wan" / "models_t5_tiny.pth")
    qkv = torch.cat([source[f"blocks.1.attn.{name}.weight"] for name in "qkv"])
    assert torch.equal(have["blocks.1.attn.qkv.weight"], qkv.bfloat16())
    both = torch.cat([source["blocks.0.ffn.gate.0.weight"], source["blocks.0.ffn.fc1.weight"]])
    assert torch.equal(have["blocks.0.ffn.gate_fc1.weight"], both.bfloat16())
    assert torch.equal(have["norm.weight"], source["norm.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks.0.attn.q.weight"), ["missing", "blocks.0.attn.q.weight"]),
        (lambda s: s.update(extra=torch.zeros(1)), ["unexpected extra"]),
        (lambda s: s.update({"norm.weight": torch.zeros(3)}), ["wrong", "norm.weight", "[3]"]),
        (lambda s: s.update({"encoder.final_layer_norm.weight": s["norm.weight"]}), ["norm.weight twice"]),
        (lambda s: s["norm.weight"].fill_(torch.nan), ["norm.weight holds NaN"]),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(release: Path, tmp_path: Path, change: Any, words: list[str]) -> None:
    state = torch.load(release / "wan" / "models_t5_tiny.pth")
    change(state)
    torch.save(state, tmp_path / "t5.pth")
    form = component_format(TINY, "text")
    with pytest.raises(UserError) as caught:
        pack_component(ComponentCheckpoint(tmp_path / "t5.pth", form), form, tmp_path / "text.safetensors")
    for word in words:
        assert word in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t5.pth"]


@pytest.fixture(scope="module")
def bundle(exported: Exported, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's bundle, with the other components and their weights added to it."""
    folder = Path(shutil.copytree(exported.folder, tmp_path_factory.mktemp("whole") / exported.folder.name))
    again(folder, text_encoder=str(release / "diffusers"), vae=str(release / "wan"))
    return folder


def test_engines_of_all_components_are_real(bundle: Path) -> None:
    folder = bundle
    manifest = load_manifest(folder)
    assert verify_files(folder, manifest) == []
    names = ["text_block", "text_norm", "decode_latent", "decode_first", "decode_next"]
    media = media_of(manifest)
    assert [stage.name for stage in media] == names
    for stage in media:
        assert stage.activation_bytes is not None
        assert (folder / str(stage.engine)).stat().st_size > 100_000
    assert manifest.media_weights == {"text": "text.safetensors", "vae": "vae.safetensors"}
    assert manifest.tokenizer == "tokenizer.json"
    dims = {t.name: t.dims for t in media[-1].inputs}
    assert dims["chunk"] == (1, VAE.top, 1, "H", "W")
    assert dims["cache.decoder.head.2"] == (1, VAE.base, 2, "8*H", "8*W")
    (frames, *_) = media[-1].outputs
    assert (frames.name, frames.dtype, frames.dims) == ("chunk_out", "uint8", (4, "8*H", "8*W", 3))


def test_an_engine_of_many_outputs_is_built_alike(bundle: Path, tmp_path: Path) -> None:
    """TensorRT orders their tables by addresses, which the builder's process fixes where it may."""
    ask = "import ctypes; raise SystemExit(ctypes.CDLL(None).personality(0x0040000) == -1)"
    if subprocess.run([sys.executable, "-c", ask], check=False).returncode:
        pytest.skip("this system does not let a process fix its addresses")
    (stage,) = (stage for stage in load_manifest(bundle).stages if stage.name == "decode_first")
    profile = (stage.profile.min, stage.profile.opt, stage.profile.max)
    engine, log = str(tmp_path / "another name.engine"), str(tmp_path / "log")
    onnx_file = str(bundle / stage.onnx)
    build_engine(BuildRequest(onnx=onnx_file, engine=engine, log=log, gpu=GPU, profile=profile), lambda *_: None)
    assert sha256_of(Path(engine)) == sha256_of(bundle / str(stage.engine))


def test_polygraphys_lines_are_for_all_components(bundle: Path, tmp_path: Path) -> None:
    """Inputs with the bundle's own weights for every stage, and engines of one stage of each component."""
    folder = bundle
    manifest = load_manifest(folder)
    names = [stage.name for stage in media_of(manifest)]
    readme = (folder / "README.txt").read_text()
    wanted = [*files.input_lines(names), *files.build_lines(manifest, names), *files.run_lines(manifest, names)]
    assert all(f"  {line}\n" in readme for line in wanted)
    lines = list(files.input_lines(names))
    if library_path() is not None:
        lines += files.build_lines(manifest, ["text_block", "decode_first"])
    typed([*files.setup_lines("tensorrt_rtx"), *lines], folder, tmp_path)
    assert len(list(tmp_path.glob("*/*.engine"))) == len(lines) - len(names)
    for stage in media_of(manifest):
        (path,) = tmp_path.glob(f"*/{stage.name}_inputs.json")
        (feed,) = load_json(str(path))
        assert {info.name for info in stage.inputs} == set(feed)
    weights = WeightsFile(folder / manifest.media_weights["text"])
    (feed,) = load_json(str(next(tmp_path.glob("*/text_block_inputs.json"))))
    got = feed["attn.o.weight"].contiguous().view(torch.uint8).numpy()
    assert got.tobytes() == weights.read("blocks.0.attn.o.weight").tobytes()


def test_the_exported_bundle_makes_a_video(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("torch", "exporter.torch_backend.backend:TORCH", "turbotrt.backends")
    monkeypatch.setattr("runtime.backends.registry.entry_points", lambda group: [point])
    arguments = ["--bundle", bundle, "--prompt", "A cat", "--out", tmp_path / "cat.mp4", "--backend", "torch"]
    arguments += ["--size", "48x32", "--frames", "9", "--steps", "1"]
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "cat.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 9


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of that bundle, free to be exported over."""
    return Path(shutil.copytree(bundle, tmp_path / "engines" / bundle.name))


def again(folder: Path, **options: Any) -> SilentProgress:
    report = SilentProgress()
    export_bundle(export_spec(**{"model": "wan-tiny", "gpu": GPU, "out": folder.parent, **options}), report)
    return report


def test_a_component_left_out_goes_and_the_others_stay(copy: Path) -> None:
    before = load_manifest(copy)
    report = again(copy, components="dit,vae")
    after = load_manifest(copy)
    assert verify_files(copy, after) == []
    assert report.titles == []
    assert "decode_next.engine: unchanged, kept" in report.notes
    assert "text.safetensors: not kept, --components leaves out text" in report.notes
    assert media_of(after) == media_of(before)[2:]
    assert after.media_weights == {"vae": "vae.safetensors"}
    assert after.files["vae.safetensors"] == before.files["vae.safetensors"]
    assert after.tokenizer is None
    assert not (copy / "text.safetensors").exists()


def test_the_dits_choices_leave_text_encoder_and_vae_as_they_are(copy: Path) -> None:
    before = load_manifest(copy)
    report = again(copy, topk="0.2")
    after = load_manifest(copy)
    made = [title.partition(",")[0] for title in report.titles]
    assert made == ["trace block", "build block.engine for rtx5090"]
    assert media_of(after) == media_of(before)
    assert (after.media_weights, after.tokenizer) == (before.media_weights, before.tokenizer)
    assert verify_files(copy, after) == []


def test_a_one_file_engine_is_composed_of_the_dit_only(copy: Path, bundle: Path, exported: Exported) -> None:
    report = again(copy, one_file=True, checkpoint=str(exported.checkpoint))
    manifest = load_manifest(copy)
    assert [title for title in report.titles if title.startswith(("trace", "build"))] == [
        "build one-file.engine for rtx5090"
    ]
    assert [s.name for s in manifest.stages if s.component == "dit"] == ["embed", "block", "head", "one-file"]
    assert media_of(manifest) == media_of(load_manifest(bundle))
    assert verify_files(copy, manifest) == []


def test_weights_outlive_a_lost_manifest(copy: Path) -> None:
    """Those whose header fits; what does not fit is said and left behind."""
    before, report = load_manifest(copy), SilentProgress()
    shutil.copyfile(copy / "text.safetensors", copy / "vae.safetensors")
    kept = kept_media(export_spec(model="wan-tiny", gpu=GPU, out=copy.parent), None, report)
    assert (kept.weights, kept.tokenizer) == ({"text": "text.safetensors"}, "tokenizer.json")
    # hashed anew: what they were made from is not known any more
    assert kept.files == {
        name: msgspec.structs.replace(before.files[name], inputs=None)
        for name in ("text.safetensors", "tokenizer.json")
    }
    text, vae = report.notes
    assert text.startswith("text.safetensors: no manifest lists it")
    assert vae.startswith("vae.safetensors: not listed, its header says")
    assert "text encoder umt5-tiny" in vae
    (copy / "vae.safetensors").write_bytes(b"not weights")
    (copy / "text.safetensors").unlink()
    report = SilentProgress()
    kept = kept_media(export_spec(model="wan-tiny", gpu=GPU, out=copy.parent), before, report)
    assert (kept.weights, report.notes) == (
        {"vae": "vae.safetensors"},
        [],
    )  # verify finds damage


def test_options_of_components_that_are_left_out_are_refused() -> None:
    with pytest.raises(UserError, match="--vae is for a component"):
        export_spec(model="wan-tiny", gpu="rtx5090", vae="x", components="dit,text")
    with pytest.raises(UserError, match="leaves out the DiT"):
        export_spec(model="wan-tiny", gpu="rtx5090", components="vae")
    with pytest.raises(UserError, match="audio"):
        export_spec(model="wan-tiny", gpu="rtx5090", components="dit,audio")
