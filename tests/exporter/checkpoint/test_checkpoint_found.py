"""Checkpoints as people find them: wrapped names, misnamed files, bare shards; and what is none, by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.checkpoint.experts import expert_paths
from exporter.checkpoint.reader import open_checkpoint
from exporter.checkpoint.table import checkpoint_tensors
from exporter.checkpoint.text_names import text_expected
from exporter.export import export_bundle
from exporter.models import MODELS
from exporter.networks.text.encoder import TEXT_ENCODERS, text_weights
from exporter.networks.vae.spec import VAES
from exporter.networks.vae.weights import vae_weights
from exporter.packing.component import ComponentCheckpoint, ComponentFormat, pack_component
from exporter.packing.formats import text_format, vae_format
from exporter.packing.media import pack_media
from exporter.spec import export_spec
from plugins.errors import UserError
from runtime.weights.file import WeightsFile
from tests.support import checkpoints as ck
from tests.support.checkpoints import refused
from tests.support.media_bundle import bare_manifest, write_tokenizer
from tests.support.progress import SilentProgress

TINY = MODELS["wan-tiny"]
STATE = ck.canonical_state_dict(TINY, 7)
TEXT, VAE = TEXT_ENCODERS[TINY.text_encoder], VAES[TINY.vae]


def inside(state: ck.State, wrapper: str) -> ck.State:
    """A wrapper around every block, as activation checkpoints and torch.compile put it, and around its Linears."""
    return {
        name.replace("blocks.", f"blocks.{wrapper}.") if i % 2 else name.replace(".weight", f".{wrapper}.weight"): value
        for i, (name, value) in enumerate(state.items())
    }


def around(state: ck.State, wrapper: str) -> ck.State:
    """blocks.N.WRAPPER.rest."""
    return {
        ".".join([*name.split(".")[:2], wrapper, *name.split(".")[2:]]) if name.startswith("blocks.") else name: value
        for name, value in state.items()
    }


WRAPPED: dict[str, ck.State] = {
    **{prefix: ck.prefixed(STATE, prefix) for prefix in ("_orig_mod.", "module.", "model.", "diffusion_model.")},
    "model.diffusion_model.": ck.prefixed(STATE, "model.diffusion_model."),
    "compiled blocks": around(STATE, "_orig_mod"),
    "compiled inside and outside": ck.prefixed(around(STATE, "_orig_mod"), "module._orig_mod.net."),
    "activation checkpoints": around(STATE, "_checkpoint_wrapped_module"),
    "FSDP": ck.prefixed(around(STATE, "_fsdp_wrapped_module"), "_fsdp_wrapped_module."),
    "FSDP around checkpoints": around(STATE, "_fsdp_wrapped_module._checkpoint_wrapped_module"),
    "older FSDP": around(STATE, "_fpw_module"),
    "each by itself": inside(STATE, "_orig_mod"),
    "diffusers, wrapped": ck.prefixed(around(ck.diffusers(STATE), "_orig_mod"), "module."),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_wrappers_of_training_code_are_no_part_of_a_name(form: str, tmp_path: Path) -> None:
    reader = open_checkpoint(ck.save_safetensors(tmp_path / "a.safetensors", WRAPPED[form]), TINY)
    assert set(reader.names) == set(STATE)
    for name in ("blocks.1.ffn.0.weight", "blocks.0.self_attn.q.bias", "head.modulation", "patch_embedding.weight"):
        assert torch.equal(reader.load(name), STATE[name]), name


def test_wrapped_and_bare_copies_are_one_tensor_twice(tmp_path: Path) -> None:
    both = STATE | {"_orig_mod.head.head.bias": STATE["head.head.bias"]}
    refused(ck.save_pth(tmp_path / "a.pth", both), "holds head.head.bias twice")


# --- files that are not what they are called ---


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "weights"])
def test_safetensors_by_another_name(name: str, tmp_path: Path) -> None:
    reader = open_checkpoint(ck.save_safetensors(tmp_path / name, STATE), TINY)
    assert torch.equal(reader.load("head.head.bias"), STATE["head.head.bias"])


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "weights"])
def test_a_torch_file_by_another_name(name: str, tmp_path: Path) -> None:
    reader = open_checkpoint(ck.save_pth(tmp_path / name, STATE), TINY)
    assert torch.equal(reader.load("head.head.bias"), STATE["head.head.bias"])


# --- shards without an index ---


@pytest.mark.parametrize("given", ["folder", "first", "last"])
def test_shards_without_an_index_are_one_checkpoint(given: str, tmp_path: Path) -> None:
    index = ck.save_sharded(tmp_path, STATE)
    index.unlink()
    shards = sorted(tmp_path.glob("*.safetensors"))
    reader = open_checkpoint({"folder": tmp_path, "first": shards[0], "last": shards[-1]}[given], TINY)
    assert reader.files == tuple(shards)
    for name, value in STATE.items():
        assert torch.equal(reader.load(name), value), name


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    ck.save_sharded(tmp_path, STATE).unlink()
    next(tmp_path.glob("*-00002-of-*")).unlink()
    refused(tmp_path, "A shard of", "none of number 2")


def test_shards_that_repeat_a_tensor_are_refused(tmp_path: Path) -> None:
    ck.save_sharded(tmp_path, STATE).unlink()
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    last.write_bytes(first.read_bytes())
    refused(tmp_path, "twice", first.name, last.name)


def test_two_sets_of_shards_do_not_tell(tmp_path: Path) -> None:
    ck.save_sharded(tmp_path, STATE).unlink()
    ck.save_safetensors(tmp_path / "other-00001-of-00002.safetensors", STATE)
    refused(tmp_path, "does not say which", "other-00001-of-00002.safetensors", "-00001-of-00003")


def test_shards_of_two_experts_lie_in_one_folder(tmp_path: Path) -> None:
    for name in ("high-00001-of-00002", "high-00002-of-00002", "low-00001-of-00002", "low-00002-of-00002"):
        (tmp_path / f"{name}.safetensors").touch()
    found = expert_paths(str(tmp_path), MODELS["wan2.2-i2v-a14b-720p"])
    assert [path.name for path in found.values()] == [f"{e}-00001-of-00002.safetensors" for e in ("high", "low")]


# --- text encoders and VAEs ---


def text_state() -> ck.State:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(want.shape, generator=generator).to(torch.bfloat16)
        for name, want in text_expected(TEXT).items()
    }


def packed(path: Path, form: ComponentFormat, out: Path) -> WeightsFile:
    pack_component(ComponentCheckpoint(path, form), form, out)
    return WeightsFile(out)


def test_what_a_text_encoder_has_no_use_for_is_passed_over(tmp_path: Path) -> None:
    extra = {
        "spiece_model": torch.zeros(100, dtype=torch.uint8),
        "decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(3, 3),
        "lm_head.weight": torch.zeros(3, 3),
    }
    form = text_format(TEXT)
    found = ComponentCheckpoint(ck.save_safetensors(tmp_path / "a.safetensors", text_state() | extra), form)
    assert set(found.passed_over) == set(extra)
    plain = ComponentCheckpoint(ck.save_safetensors(tmp_path / "b.safetensors", text_state()), form)
    assert plain.passed_over == ()
    for name in text_expected(TEXT):
        assert torch.equal(torch.cat(list(found.bands(name))), torch.cat(list(plain.bands(name)))), name


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
def test_fp16_text_encoders_are_computed_in_bf16(prefix: str, tmp_path: Path) -> None:
    half = {name: value.to(torch.float16) for name, value in text_state().items()}
    path = ck.save_pth(tmp_path / "a.pth", ck.prefixed(half, prefix))
    file = packed(path, text_format(TEXT), tmp_path / "out.safetensors")
    table = text_weights(TEXT)
    assert {name: tensor.dtype for name, tensor in file.tensors.items()} == {n: w.dtype for n, w in table.items()}
    got = torch.from_numpy(file.read("blocks.1.ffn.fc2.weight")).view(torch.bfloat16)
    assert torch.equal(got, half["blocks.1.ffn.fc2.weight"].to(torch.bfloat16))
    file.close()


@pytest.mark.parametrize("prefix", ["", "model.", "first_stage_model.", "module."])
def test_vae_files_with_a_prefix(prefix: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    state = {name: torch.randn(shape, generator=generator) for name, shape in vae_weights(VAE).items()}
    path = ck.save_pth(tmp_path / "a.pth", ck.prefixed(state, prefix))
    file = packed(path, vae_format(VAE), tmp_path / "out.safetensors")
    got = torch.from_numpy(file.read("decoder.conv1.weight")).view(torch.bfloat16)
    assert torch.equal(got, state["decoder.conv1.weight"].to(torch.bfloat16))
    file.close()


# --- what is no checkpoint of the model, called by its name ---

LORA = {
    "PEFT": {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(8, 256)},
    "kohya": {"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.zeros(8, 256)},
    "diffusers": {"transformer.blocks.0.attn1.to_q.lora.up.weight": torch.zeros(256, 8)},
    "differences": {"diffusion_model.blocks.0.norm3.diff": torch.zeros(256), "blocks.0.ffn.0.diff_b": torch.zeros(512)},
    "LoHa": {"blocks.0.self_attn.q.hada_w1_a": torch.zeros(8, 256)},
}


@pytest.mark.parametrize("kind", LORA)
def test_a_lora_is_called_a_lora(kind: str, tmp_path: Path) -> None:
    refused(ck.save_safetensors(tmp_path / "a.safetensors", LORA[kind]), "is a LoRA, not a model", "merge it into")
    with pytest.raises(UserError, match="is a LoRA"):
        ComponentCheckpoint(tmp_path / "a.safetensors", text_format(TEXT))


@pytest.mark.parametrize("path", ["in/a.gguf", "in"])
def test_gguf_is_called_gguf_in_a_folder_too(path: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    refused(tmp_path / path, "quantized another way: GGUF")


def _sparse(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    return ck.save_sparse(tmp_path / "a.safetensors", list(shapes.items()))


def _dit(**sizes: Any) -> dict[str, tuple[int, ...]]:
    return {name: want.shape for name, want in checkpoint_tensors(replace(TINY, **sizes)).items()}


OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "5B": (
        _dit(dim=3072, layers=30, ffn_dim=14336, in_channels=48),
        "Wan2.2-TI2V-5B: a DiT of 30 blocks, D 3072 and 48 input channels; ",
    ),
    "CLIP": (
        _dit(in_channels=36) | {"img_emb.proj.0.weight": (256,)},
        "a DiT of 2 blocks, D 256 and 36 input channels, with CLIP's image embedding",
    ),
    "text": ({n: w.shape for n, w in text_expected(TEXT).items()}, "a text encoder of 2 blocks, D 4096 and 384 tokens"),
    "VAE": ({n: tuple(s) for n, s in vae_weights(VAE).items()}, "a VAE of 16 latent channels"),
    "else": ({"x": (1,)}, "nothing that is known here"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_model_is_described(kind: str, tmp_path: Path) -> None:
    shapes, words = OTHERS[kind]
    refused(_sparse(tmp_path, shapes), "is not a checkpoint of wan-tiny", f"got: {words}", "differences")


def test_a_checkpoint_of_another_model_of_ours_is_told_as_a_mix_up(tmp_path: Path) -> None:
    shapes = {n: w.shape for n, w in checkpoint_tensors(MODELS["wan2.1-1.3b-480p"]).items()}
    text = refused(
        _sparse(tmp_path, shapes), "is a checkpoint of another model than wan-tiny", "wan2.1-1.3b-480p: a DiT of 30"
    )
    assert "differences" not in text  # a list of 800 names says nothing more


def test_another_text_encoder_is_described(tmp_path: Path) -> None:
    other = replace(TEXT, layers=12, dim=768)
    path = _sparse(tmp_path, {n: w.shape for n, w in text_expected(other).items()})
    with pytest.raises(UserError, match="got: a text encoder of 12 blocks, D 768 and 384 tokens; "):
        ComponentCheckpoint(path, text_format(TEXT))


# --- HIGH,LOW ---

I2V = MODELS["wan2.2-i2v-a14b-720p"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("TurboWan2.2-I2V-A14B-low-720P.pth", "TurboWan2.2-I2V-A14B-high-720P.pth"),
        ("low_noise_model/x.safetensors", "high_noise_model/x.safetensors"),
        ("transformer_2", "transformer"),
        ("wan_lownoise.pth", "b.pth"),
        ("a.pth", "HIGH.pth"),
        ("org/repo:a-low.pth", "org/repo:a-high.pth"),
    ],
)
def test_low_before_high_is_refused_by_the_names(first: str, second: str, tmp_path: Path) -> None:
    here = [name if ":" in name else str(tmp_path / name) for name in (first, second)]
    for name in here:
        if ":" not in name:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()
    with pytest.raises(UserError, match="not in the order HIGH,LOW"):
        expert_paths(",".join(here), I2V)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("high/low-rank.pth", "low/high-rank.pth"),
        ("a-high-low.pth", "b.pth"),
        ("highway.pth", "slow.pth"),
        ("high-res/a.pth", "high-res/b.pth"),
    ],
)
def test_names_that_do_not_tell_are_taken_as_they_come(first: str, second: str, tmp_path: Path) -> None:
    for name in (first, second):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if first == "high/low-rank.pth":
        with pytest.raises(UserError, match="not in the order"):  # a file's own name comes before its folder's
            expert_paths(f"{tmp_path / first},{tmp_path / second}", I2V)
    else:
        assert list(expert_paths(f"{tmp_path / first},{tmp_path / second}", I2V).values()) == [
            tmp_path / first,
            tmp_path / second,
        ]


# --- before anything is built ---


def _lora(folder: Path) -> dict[str, Any]:
    return {"checkpoint": str(ck.save_safetensors(folder / "lora.safetensors", LORA["PEFT"]))}


def _gguf(folder: Path) -> dict[str, Any]:
    (folder / "t5.gguf").write_bytes(b"GGUF" + bytes(100))
    return {"text_encoder": str(folder / "t5.gguf")}


def _quantized(folder: Path) -> dict[str, Any]:
    return {"checkpoint": str(ck.save_pth(folder / "q.pth", ck.quantized(STATE))), "linear": "bf16"}


TOO_LATE: dict[str, tuple[Any, str]] = {
    "a LoRA": (_lora, "is a LoRA"),
    "a model of another size": (lambda f: {"checkpoint": str(_sparse(f, _dit(layers=4)))}, "a DiT of 4 blocks"),
    "a GGUF text encoder": (_gguf, "GGUF"),
    "a DiT for a VAE": (lambda f: {"vae": str(_sparse(f, _dit()))}, "a DiT of 2 blocks"),
    "no proj_l": (lambda f: {"checkpoint": str(ck.save_pth(f / "a.pth", ck.without_proj_l(STATE)))}, "has no proj_l"),
    "-quant for bf16": (_quantized, "is a -quant checkpoint"),
}


@pytest.mark.parametrize("case", TOO_LATE)
def test_what_headers_tell_is_told_before_anything_is_built(case: str, tmp_path: Path) -> None:
    make, words = TOO_LATE[case]
    spec = export_spec(model="wan-tiny", gpu="rtx5090", out=tmp_path / "out", onnx_only=True, **make(tmp_path))
    report = SilentProgress()
    with pytest.raises(UserError, match=words):
        export_bundle(spec, report)
    assert (report.titles, spec.bundle_dir.exists()) == ([], False)


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    state = text_state() | {"spiece_model": torch.zeros(9, dtype=torch.uint8), "lm_head.weight": torch.zeros(3, 3)}
    path = ck.save_safetensors(tmp_path / "a.safetensors", state)
    write_tokenizer(tmp_path / "tokenizer.json")
    spec = export_spec(model="wan-tiny", gpu="rtx5090", out=tmp_path / "out", text_encoder=str(path))
    spec.bundle_dir.mkdir(parents=True)
    report = SilentProgress()
    pack_media(spec, bare_manifest(TINY), report)
    assert f"{path}: lm_head, spiece_model passed over, of which the text encoder umt5-tiny has no use" in report.notes
