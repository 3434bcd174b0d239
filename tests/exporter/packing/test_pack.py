"""Packing: every published form of a checkpoint gives the same bytes; failures leave nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from exporter.checkpoint.reader import open_checkpoint
from exporter.checkpoint.table import checkpoint_tensors
from exporter.models import MODELS
from exporter.networks.dit.weights import packed_bytes, packed_tensors
from exporter.networks.weight_spec import LinearMode
from exporter.packing.packer import pack
from exporter.packing.quantize import block_quantize
from plugins.errors import UserError
from tests.support import checkpoints as ck
from tests.support.paths import ROOT

TINY = MODELS["wan-tiny"]
NAMES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp32": torch.float32}
STATE = ck.canonical_state_dict(TINY, 7)

FORMS: dict[str, Callable[[Path], Path]] = {
    "pth": lambda d: ck.save_pth(d / "a.pth", STATE),
    "training": lambda d: ck.save_pth(d / "a.pth", ck.prefixed(STATE, "net."), wrapped=True),
    "net": lambda d: ck.save_pth(d / "a.pth", ck.prefixed(STATE, "net.")),
    "fp32": lambda d: ck.save_pth(d / "a.pth", {k: v.float() for k, v in STATE.items()}),
    "quant": lambda d: ck.save_pth(d / "a-quant.pth", ck.quantized(STATE)),
    "quant-safetensors": lambda d: ck.save_safetensors(d / "a.safetensors", ck.quantized(STATE)),
    "wan": lambda d: ck.save_safetensors(d / "a.safetensors", ck.conv3d(STATE)),
    "comfyui": lambda d: ck.save_safetensors(d / "a.safetensors", ck.prefixed(STATE, "model.diffusion_model.")),
    "index": lambda d: ck.save_sharded(d, STATE),
    "folder": lambda d: ck.save_sharded(d, STATE).parent,
    "diffusers": lambda d: ck.save_safetensors(d / "a.safetensors", ck.diffusers(STATE)),
    "diffusers-pipeline": lambda d: ck.save_sharded(d / "transformer", ck.diffusers(STATE)).parent.parent,
}


@pytest.fixture(scope="module")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The canonical safetensors file of STATE."""
    return ck.save_safetensors(tmp_path_factory.mktemp("canonical") / "a.safetensors", STATE)


@pytest.fixture(scope="module")
def packed(canonical: Path) -> Path:
    out = canonical.parent / "packed.safetensors"
    pack(open_checkpoint(canonical, TINY), TINY, out)
    return out


@pytest.mark.parametrize("form", FORMS)
def test_every_form_packs_to_the_same_bytes(form: str, tmp_path: Path, packed: Path) -> None:
    out = tmp_path / "out" / "packed.safetensors"
    pack(open_checkpoint(FORMS[form](tmp_path / "in"), TINY), TINY, out)
    assert out.read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("linear", ["int8", "bf16"])
def test_values(linear: LinearMode, canonical: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed.safetensors"
    pack(open_checkpoint(canonical, TINY), TINY, out, linear=linear)
    table = packed_tensors(TINY, linear)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format_version": "1", "model": "wan-tiny", "linear": linear, "has_proj_l": "true"}
        assert set(file.keys()) == set(table)
        got = {name: file.get_tensor(name) for name in table}
    for name, spec in table.items():
        assert (tuple(got[name].shape), got[name].dtype) == (spec.shape, NAMES[spec.dtype]), name
    qk = torch.cat([STATE[f"blocks.1.self_attn.{x}.weight"] for x in "qk"])
    kv = torch.cat([STATE[f"blocks.1.cross_attn.{x}.weight"] for x in "kv"])
    for name, weight in {
        "blocks.1.self_attn.qk": qk,
        "blocks.1.cross_attn.kv": kv,
        "blocks.0.ffn.2": STATE["blocks.0.ffn.2.weight"],
    }.items():
        if linear == "int8":
            q, scale = block_quantize(weight)
            assert torch.equal(got[name + ".int8_weight"], q), name
            assert torch.equal(got[name + ".scale"], scale), name
        else:
            assert torch.equal(got[name + ".weight"], weight), name
    bias = torch.cat([STATE[f"blocks.0.self_attn.{x}.bias"] for x in "qk"]).float()
    assert torch.equal(got["blocks.0.self_attn.qk.bias"], bias)
    assert torch.equal(got["blocks.1.modulation"], STATE["blocks.1.modulation"][0].float())
    assert torch.equal(got["head.modulation"], STATE["head.modulation"][0].float())
    proj = "blocks.1.self_attn.attn_op.local_attn.proj_l.weight"
    assert torch.equal(got["blocks.1.self_attn.proj_l.weight"], STATE[proj].float())
    assert torch.equal(got["patch_embedding.weight"], STATE["patch_embedding.weight"])


def test_file_lies_in_the_table_s_order(packed: Path) -> None:
    raw = packed.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    names = re.findall(rb'"([\w.]+)":\{"dtype"', raw[8 : 8 + length])
    assert [name.decode() for name in names] == list(packed_tensors(TINY))
    assert length % 8 == 0
    assert len(raw) == 8 + length + packed_bytes(TINY)


def test_quant_passes_through_bit_for_bit(tmp_path: Path) -> None:
    state = ck.quantized(STATE)
    # Values that requantization would not give: a pass-through keeps them.
    state["blocks.0.ffn.0.int8_weight"] = torch.full_like(state["blocks.0.ffn.0.int8_weight"], 3)
    state["blocks.0.ffn.0.scale"] = state["blocks.0.ffn.0.scale"] * 1.7
    reader = open_checkpoint(ck.save_pth(tmp_path / "q.pth", state), TINY)
    assert reader.quantized
    pack(reader, TINY, tmp_path / "out")
    with safe_open(tmp_path / "out", "pt") as file:
        for leaf in ("int8_weight", "scale"):
            assert torch.equal(file.get_tensor(f"blocks.0.ffn.0.{leaf}"), state[f"blocks.0.ffn.0.{leaf}"])
            joined = torch.cat([state[f"blocks.1.cross_attn.{x}.{leaf}"] for x in "kv"])
            assert torch.equal(file.get_tensor(f"blocks.1.cross_attn.kv.{leaf}"), joined)
    with pytest.raises(UserError, match="-quant checkpoint"):
        pack(reader, TINY, tmp_path / "out2", linear="bf16")
    assert not (tmp_path / "out2").exists()


def test_missing_proj_l_packs_as_zeros_and_says_so(tmp_path: Path) -> None:
    path = ck.save_pth(tmp_path / "a.pth", ck.without_proj_l(STATE))
    reader = open_checkpoint(path, TINY, allow_missing_proj_l=True)
    assert not reader.has_proj_l
    pack(reader, TINY, tmp_path / "out")
    with safe_open(tmp_path / "out", "pt") as file:
        assert file.metadata()["has_proj_l"] == "false"
        assert not file.get_tensor("blocks.0.self_attn.proj_l.weight").any()


def test_progress_counts_to_the_total(canonical: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(
        open_checkpoint(canonical, TINY),
        TINY,
        tmp_path / "out",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (packed_bytes(TINY), packed_bytes(TINY))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_interrupted_pack_leaves_the_old_file(failure: type[BaseException], canonical: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    partial: list[int] = []

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            partial.append(len(list(tmp_path.iterdir())))
            raise failure

    with pytest.raises(failure):
        pack(open_checkpoint(canonical, TINY), TINY, out, progress=stop)
    assert partial == [2], "the temporary file is in the folder of the output"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.safetensors", b"old")]


def test_not_finite_weights_are_refused(tmp_path: Path) -> None:
    for name in ("blocks.1.ffn.0.weight", "blocks.0.norm3.bias"):
        broken = STATE[name].clone()
        broken.view(-1)[5] = float("nan")
        path = ck.save_pth(tmp_path / "a.pth", STATE | {name: broken})
        with pytest.raises(UserError, match=re.escape(name)):
            pack(open_checkpoint(path, TINY), TINY, tmp_path / "out" / "o")
    assert not list((tmp_path / "out").iterdir())


def test_no_room(canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": packed_bytes(TINY)})  # room for the tensors, not for the header
    monkeypatch.setattr("exporter.packing.writer.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="no room"):
        pack(open_checkpoint(canonical, TINY), TINY, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_model_s_reader_is_refused(canonical: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another model"):
        pack(open_checkpoint(canonical, TINY), MODELS["wan2.1-1.3b-480p"], tmp_path / "out")


_MEASURE = """
import re, sys, threading, time
from dataclasses import replace
from pathlib import Path
from exporter.checkpoint.reader import open_checkpoint
from exporter.models import MODELS
from exporter.packing.packer import pack
peak = 0
def sample():
    global peak
    while True:
        kib = int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        peak = max(peak, kib)
        time.sleep(0.05)
threading.Thread(target=sample, daemon=True).start()
model = replace(MODELS["wan2.1-14b-480p"], layers=int(sys.argv[3]))
pack(open_checkpoint(Path(sys.argv[1]), model), model, Path(sys.argv[2]))
print(peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_14b_widths_2_of_40_layers_pack_below_1_gib(tmp_path: Path) -> None:
    """A bf16 checkpoint of all widths of the 14B models, 2 of 40 layers, sparse on disk, packs within 1 GiB.

    Memory does not depend on the number of layers: held at once are one tensor and one Linear's scales. RssAnon stays
    below 1 GiB, so that neither the checkpoint nor its packed form can be in memory as a whole.
    """
    model = replace(MODELS["wan2.1-14b-480p"], layers=2)
    assert packed_bytes(model) > 2**30
    shapes = [(name, want.shape) for name, want in checkpoint_tensors(model).items()]
    path = ck.save_sparse(tmp_path / "sparse.safetensors", shapes)
    out = tmp_path / "packed"
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), str(out), str(model.layers)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(run.stdout) / 2**20
    assert out.stat().st_size > packed_bytes(model)
    out.unlink()
    assert peak < 1, f"RssAnon peaked at {peak:.2f} GiB"
