"""Opening checkpoints: names, strict checks against the model, and quantization schemes that are not ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporter.checkpoint.reader import open_checkpoint
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.checkpoint.source import TensorMeta
from exporter.checkpoint.table import checkpoint_tensors
from exporter.models import MODELS
from tests.support import checkpoints as ck
from tests.support.checkpoints import refused

TINY = MODELS["wan-tiny"]
STATE = ck.canonical_state_dict(TINY, 7)


# --- what is read ---


def test_reader_tells_shapes_without_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ck.save_safetensors(tmp_path / "a.safetensors", ck.conv3d(STATE))
    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsFile, "load", lambda self, name: pytest.fail(f"{name} was loaded"))
        reader = open_checkpoint(path, TINY)
        assert set(reader.names) == set(STATE)
        assert reader.meta("patch_embedding.weight") == TensorMeta((256, 64), "bf16")
        assert reader.meta("blocks.1.ffn.0.weight") == TensorMeta((512, 256), "bf16")
    assert reader.has_proj_l
    assert not reader.quantized


@pytest.mark.parametrize("form", ["canonical", "diffusers", "sharded", "pth"])
def test_every_tensor_loads_as_it_was_saved(form: str, tmp_path: Path) -> None:
    path = {
        "canonical": lambda: ck.save_safetensors(tmp_path / "a.safetensors", STATE),
        "diffusers": lambda: ck.save_safetensors(tmp_path / "a.safetensors", ck.diffusers(STATE)),
        "sharded": lambda: ck.save_sharded(tmp_path, STATE),
        "pth": lambda: ck.save_pth(tmp_path / "a.pth", ck.prefixed(STATE, "net."), wrapped=True),
    }[form]()
    reader = open_checkpoint(path, TINY)
    for name, value in STATE.items():
        assert torch.equal(reader.load(name), value), name


def test_extra_state_of_training_modules_is_no_weight(tmp_path: Path) -> None:
    open_checkpoint(ck.save_pth(tmp_path / "a.pth", STATE | {"blocks.0.ffn.0._extra_state": None}), TINY)


def test_a_whole_wan_folder_means_its_transformer(tmp_path: Path) -> None:
    ck.save_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", STATE)
    ck.save_pth(tmp_path / "Wan2.1_VAE.pth", {"x": torch.zeros(1)})
    assert open_checkpoint(tmp_path, TINY).has_proj_l


# --- what does not fit the model ---


def test_differences_are_listed_together(tmp_path: Path) -> None:
    state = {name: value for name, value in STATE.items() if name != "blocks.0.norm3.bias"}
    state["blocks.1.ffn.0.weight"] = torch.zeros(3, 4)
    state["head.head.bias"] = state["head.head.bias"].double()
    state["img_emb.proj.weight"] = torch.zeros(2)
    refused(
        ck.save_pth(tmp_path / "a.pth", state),
        "4 differences",
        "missing    blocks.0.norm3.bias: bf16/fp16/fp32 [256]",
        "wrong      blocks.1.ffn.0.weight: fp32 [3, 4] in place of bf16/fp16/fp32 [512, 256]",
        "wrong      head.head.bias: float64 [64]",
        "unexpected img_emb.proj.weight",
    )


def test_long_lists_are_cut(tmp_path: Path) -> None:
    text = refused(ck.save_pth(tmp_path / "a.pth", {"x": torch.zeros(1)}), "... and")
    count = len(checkpoint_tensors(TINY)) - 2 * 2 + 1  # without proj_l's two tensors in two blocks, and with x
    assert f"{count} differences" in text
    assert f"... and {count - 20} more" in text


def test_the_model_that_fits_is_named(tmp_path: Path) -> None:
    other = MODELS["wan2.1-14b-480p"]
    shapes = [(name, want.shape) for name, want in checkpoint_tensors(other).items()]
    path = ck.save_sparse(tmp_path / "a.safetensors", shapes)
    text = refused(path, "one of wan2.1-14b-480p or wan2.1-14b-720p")
    assert "1.3b" not in text
    open_checkpoint(path, other)


def test_missing_proj_l_must_be_asked_for(tmp_path: Path) -> None:
    path = ck.save_pth(tmp_path / "a.pth", ck.without_proj_l(STATE))
    refused(path, "has no proj_l", "--attention original, sage or sla")
    reader = open_checkpoint(path, TINY, allow_missing_proj_l=True)
    name = "blocks.1.self_attn.attn_op.local_attn.proj_l.weight"
    assert not reader.has_proj_l
    assert reader.meta(name) == TensorMeta((128, 128), "fp32")
    assert torch.equal(reader.load(name), torch.zeros(128, 128))


def test_half_a_proj_l_is_never_allowed(tmp_path: Path) -> None:
    state = {name: value for name, value in STATE.items() if not ("proj_l" in name and name.startswith("blocks.1"))}
    path = ck.save_pth(tmp_path / "a.pth", state)
    refused(path, "missing    blocks.1.self_attn.attn_op.local_attn.proj_l.weight", allow=True)


def test_half_quantized_isrefused(tmp_path: Path) -> None:
    state = ck.quantized(STATE) | {"blocks.0.ffn.0.weight": STATE["blocks.0.ffn.0.weight"]}
    del state["blocks.0.ffn.0.int8_weight"]
    refused(ck.save_pth(tmp_path / "a.pth", state), "missing    blocks.0.ffn.0.int8_weight: int8 [512, 256]")


def test_two_copies_arerefused(tmp_path: Path) -> None:
    refused(ck.save_pth(tmp_path / "a.pth", STATE | {"net.head.head.bias": STATE["head.head.bias"]}), "twice")


# --- foreign quantization ---

W = "blocks.0.ffn.0."
I8 = torch.zeros((512, 256), dtype=torch.int8)
U8 = I8.view(torch.uint8)
F8 = I8.to(torch.float8_e4m3fn)
FOREIGN: dict[str, tuple[str, ck.State]] = {
    "int8 rows": ("per-channel INT8", {W + "weight": I8, W + "weight_scale": torch.ones(512, 1)}),
    "int8_weight rows": ("per-channel INT8", {W + "int8_weight": I8, W + "scale": torch.ones(512)}),
    "int8 alone": ("INT8 without block scales", {W + "weight": I8}),
    "fp8": ("FP8 (float8)", {W + "weight": F8}),
    "comfyui fp8": ("per-tensor FP8", {W + "weight": F8, W + "scale_weight": torch.ones(()), "scaled_fp8": F8[0, :0]}),
    "fp8 rows": ("per-channel or per-tensor FP8", {W + "weight": F8, W + "weight_scale": torch.ones(512)}),
    "nvfp4": ("NVFP4", {W + "weight": U8, W + "weight_scale": F8, W + "weight_scale_2": F8[0, :1].clone()}),
    "bitsandbytes": ("bitsandbytes", {W + "weight": I8.view(torch.uint8), W + "weight.absmax": torch.ones(9)}),
    "gptq": ("GPTQ/AWQ", {W + "qweight": torch.zeros((4, 4), dtype=torch.int32)}),
    "scale only": ("weight_scale", {W + "weight_scale": torch.ones(512)}),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("scheme", FOREIGN)
def test_foreign_schemes_are_named(scheme: str, suffix: str, tmp_path: Path) -> None:
    message, tensors = FOREIGN[scheme]
    state = {name: value for name, value in STATE.items() if name != W + "weight"} | tensors
    save = ck.save_pth if suffix == "pth" else ck.save_safetensors
    refused(save(tmp_path / f"a.{suffix}", state), "quantized another way", message)


@pytest.mark.parametrize("name", ["a.gguf", "a.safetensors"])
def test_gguf_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
    refused(tmp_path / name, "GGUF")


def test_table_agrees_with_the_published_tensor_count() -> None:
    """Wan's own blocks hold 27 tensors; proj_l adds 2. Outside the blocks there are 15."""
    assert len(checkpoint_tensors(TINY)) == 15 + 29 * TINY.layers
    assert len(checkpoint_tensors(replace(TINY, layers=30))) == 15 + 29 * 30
