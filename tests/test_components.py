"""Text encoder and VAE in an export: published formats, strict checks, real engines, a video from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for _module in ("triton", "onnx", "onnx_graphsurgeon", "tensorrt_rtx", "diffusers", "transformers", "tokenizers", "av"):
    pytest.importorskip(_module)

import av  # noqa: E402
from checkpoints import canonical_state_dict, save_safetensors  # noqa: E402
from media_bundle import write_tokenizer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from exporter.checkpoint.component import ComponentCheckpoint, pack_component  # noqa: E402
from exporter.checkpoint.formats import component_format  # noqa: E402
from exporter.checkpoint.text_names import text_name  # noqa: E402
from exporter.cli import app  # noqa: E402
from exporter.export import export_bundle  # noqa: E402
from exporter.models import MODELS  # noqa: E402
from exporter.progress import SilentProgress  # noqa: E402
from exporter.spec import export_spec  # noqa: E402
from exporter.text_encoder import TEXT_ENCODERS  # noqa: E402
from exporter.vae.names import vae_name  # noqa: E402
from exporter.vae.spec import VAES  # noqa: E402
from plugins.errors import UserError  # noqa: E402
from runtime.bundle import load_manifest, verify_files  # noqa: E402
from runtime.weights_file import WeightsFile  # noqa: E402

TINY = MODELS["wan-tiny"]
TEXT, VAE = TEXT_ENCODERS[TINY.text_encoder], VAES[TINY.vae]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers pipeline's folders, as its own libraries save them, and Wan's two .pth files beside each other."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("release")
    config = transformers.UMT5Config(
        vocab_size=TEXT.vocabulary, d_model=TEXT.dim, d_kv=TEXT.head_dim, d_ff=TEXT.ffn_dim, num_layers=TEXT.layers,
        num_heads=TEXT.heads,
    )  # fmt: skip
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
def bundle(release: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SilentProgress]:
    """wan-tiny with all components and all weights for the RTX 4090."""
    folder, report = tmp_path_factory.mktemp("whole"), SilentProgress()
    checkpoint = save_safetensors(folder / "dit.safetensors", canonical_state_dict(TINY))
    spec = export_spec(
        model="wan-tiny", gpu="rtx4090", out=folder / "engines", checkpoint=str(checkpoint),
        text_encoder=str(release / "diffusers"), vae=str(release / "wan"),
    )  # fmt: skip
    return export_bundle(spec, report), report


def test_engines_of_all_components_are_real(bundle: tuple[Path, SilentProgress]) -> None:
    folder, _ = bundle
    manifest = load_manifest(folder)
    assert verify_files(folder, manifest) == []
    names = ["text_block", "text_norm", "decode_latent", "decode_first", "decode_next"]
    assert [stage.name for stage in manifest.media] == names
    for stage in manifest.media:
        assert stage.activation_bytes is not None
        assert (folder / str(stage.engine)).stat().st_size > 100_000
    assert manifest.media_weights == {"text": "text.safetensors", "vae": "vae.safetensors"}
    assert manifest.tokenizer == "tokenizer.json"
    dims = {t.name: t.dims for t in manifest.media[-1].inputs}
    assert dims["chunk"] == (1, VAE.top, 1, "H", "W")
    assert dims["cache.decoder.head.2"] == (1, VAE.base, 2, "8*H", "8*W")
    (frames, *_) = manifest.media[-1].outputs
    assert (frames.name, frames.dtype, frames.dims) == ("chunk_out", "fp32", (1, 3, 4, "8*H", "8*W"))


def test_the_exported_bundle_makes_a_video(
    bundle: tuple[Path, SilentProgress], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("torch", "exporter.torch_backend:TORCH", "turbotrt.backends")
    monkeypatch.setattr("runtime.backends.entry_points", lambda group: [point])
    arguments = ["--bundle", bundle[0], "--prompt", "A cat", "--out", tmp_path / "cat.mp4", "--backend", "torch"]
    arguments += ["--size", "48x32", "--frames", "9", "--steps", "1"]
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "cat.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 9


def test_weights_are_kept_when_the_engines_are_made_again(bundle: tuple[Path, SilentProgress], tmp_path: Path) -> None:
    folder = tmp_path / "engines" / bundle[0].name
    shutil.copytree(bundle[0], folder)
    before = load_manifest(folder)
    report = SilentProgress()
    export_bundle(export_spec(model="wan-tiny", gpu="rtx4090", out=tmp_path / "engines", components="dit,vae"), report)
    after = load_manifest(folder)
    assert verify_files(folder, after) == []
    assert "decode_next.engine: unchanged, kept" in report.notes
    assert after.media_weights == {"vae": "vae.safetensors"}
    assert after.files["vae.safetensors"] == before.files["vae.safetensors"]
    assert after.tokenizer is None


def test_options_of_components_that_are_left_out_are_refused() -> None:
    with pytest.raises(UserError, match="--vae is for a component"):
        export_spec(model="wan-tiny", gpu="rtx5090", vae="x", components="dit,text")
    with pytest.raises(UserError, match="leaves out the DiT"):
        export_spec(model="wan-tiny", gpu="rtx5090", components="vae")
    with pytest.raises(UserError, match="audio"):
        export_spec(model="wan-tiny", gpu="rtx5090", components="dit,audio")
