"""LoRAs in every published form against an independent merge; what does not fit is told by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from exporter.checkpoint.lora import load_loras
from exporter.checkpoint.reader import open_checkpoint
from exporter.loras import Lora, LoraArguments, Loras, parse_lora
from exporter.models import MODELS
from exporter.packing.adapted import AdaptedCheckpoint, float_table
from exporter.packing.dit import pack_checkpoint, pack_into
from exporter.packing.packed_checkpoint import open_packed
from exporter.packing.packer import pack
from exporter.packing.quantize import block_dequantize
from exporter.spec import export_spec
from plugins.errors import UserError
from tests.support import checkpoints as ck
from tests.support import loras
from tests.support.progress import SilentProgress

TINY, I2V = MODELS["wan-tiny"], MODELS["wan2.2-i2v-a14b-720p"]
STATE = ck.canonical_state_dict(TINY)
PARTS = loras.Parts(STATE, rank=4, alpha=2.0, differences=True)
LOW = loras.Parts(STATE, rank=4, alpha=2.0)
BARE = loras.Parts(STATE, rank=4, alpha=None)

#: Form → (what the file holds, what it says).
FORMS: dict[str, tuple[Callable[[], ck.State], loras.Parts, dict[str, str] | None]] = {
    "peft": (lambda: loras.peft(BARE), BARE, None),
    "peft without an adapter's name": (lambda: loras.peft(BARE, "diffusion_model.", ""), BARE, None),
    "diffusers": (lambda: loras.diffusers_form(BARE), BARE, None),
    "diffusers with alpha in its header": (
        lambda: loras.diffusers_form(LOW),
        LOW,
        {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 2.0, "transformer.r": 4})},
    ),
    "Wan": (lambda: loras.dotted(PARTS, ""), PARTS, None),
    "ComfyUI, LightX2V": (lambda: loras.dotted(PARTS, "diffusion_model."), PARTS, None),
    "kohya, musubi": (lambda: loras.kohya(LOW), LOW, None),
    "kohya with diffusers' modules": (lambda: loras.kohya(LOW, theirs=True), LOW, None),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ck.save_safetensors(tmp_path_factory.mktemp("base") / "base.safetensors", STATE)


def adapted(base: Path, *named: tuple[Path, float], partial: bool = False) -> AdaptedCheckpoint:
    reader = open_checkpoint(base, TINY)
    return AdaptedCheckpoint(reader, load_loras(named, float_table(reader), partial=partial, note=lambda _: None))


def equals(have: AdaptedCheckpoint, want: ck.State, touched: set[str]) -> None:
    """Changed tensors within fp32's rounding of the sum; all others as they were stored."""
    for name, tensor in want.items():
        loaded = have.load(name)
        if name in touched:
            assert loaded.dtype == torch.float32
            assert torch.allclose(loaded.reshape(tensor.shape), tensor, rtol=1e-5, atol=1e-6), name
        else:
            assert torch.equal(loaded, STATE[name]), name


def touched_by(parts: loras.Parts) -> set[str]:
    return {f"{target}.weight" for target in parts.low} | set(parts.whole)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [0.0, 1.0, -0.5])
def test_every_form_is_the_independent_merge(form: str, strength: float, base: Path, tmp_path: Path) -> None:
    make, parts, metadata = FORMS[form]
    path = loras.write(tmp_path / "a.safetensors", make(), metadata)
    equals(adapted(base, (path, strength)), loras.merged(STATE, (parts, strength)), touched_by(parts))


@pytest.mark.parametrize("rank", [1, 256])
def test_ranks(rank: int, base: Path, tmp_path: Path) -> None:
    parts = loras.Parts(STATE, rank=rank, alpha=float(rank) / 2)
    path = loras.write(tmp_path / "a.safetensors", loras.kohya(parts))
    equals(adapted(base, (path, 1.0)), loras.merged(STATE, (parts, 1.0)), touched_by(parts))


def test_two_at_once(base: Path, tmp_path: Path) -> None:
    other = loras.Parts(STATE, rank=8, alpha=4.0, seed=5)
    first = loras.write(tmp_path / "a.safetensors", loras.dotted(PARTS, "diffusion_model."))
    second = loras.write(tmp_path / "b.safetensors", loras.kohya(other))
    have = adapted(base, (first, 0.7), (second, -0.3))
    equals(have, loras.merged(STATE, (PARTS, 0.7), (other, -0.3)), touched_by(PARTS) | touched_by(other))
    assert have.loras == "a.safetensors:0.7, b.safetensors:-0.3"
    assert [path.name for path in have.files] == ["base.safetensors", "a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(("rooted", "scale"), [(False, 2.0), (True, 4.0)])
def test_alpha_of_pefts_config(rooted: bool, scale: float, base: Path, tmp_path: Path) -> None:
    """A folder as peft saves it; with rslora alpha is divided by the rank's root."""
    loras.write(tmp_path / "adapter_model.safetensors", loras.peft(BARE))
    config = {"r": 4, "lora_alpha": 8, "use_rslora": rooted, "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    want = loras.merged(STATE, (BARE, scale))
    equals(adapted(base, (tmp_path, 1.0)), want, touched_by(BARE))


def test_a_packed_file_is_that_of_the_merged_checkpoint(base: Path, tmp_path: Path) -> None:
    """Bit for bit: merging in fp32 and quantizing after it is what packing the merged checkpoint does."""
    path = loras.write(tmp_path / "a.safetensors", loras.dotted(PARTS, "diffusion_model."))
    reader = adapted(base, (path, 0.5))
    whole = {name: reader.load(name) for name in reader.names}
    merged = ck.save_safetensors(tmp_path / "merged.safetensors", whole)
    said = SilentProgress()
    choices: dict[str, Any] = {"linear": "int8", "allow_missing_proj_l": False, "progress": said}
    chosen = Loras((Lora(str(path), 0.5, ("model",)),))
    pack_checkpoint(str(base), TINY, tmp_path / "with.safetensors", loras=chosen, **choices)
    pack_checkpoint(str(merged), TINY, tmp_path / "of.safetensors", **choices)
    have, want = (load_file(tmp_path / f"{name}.safetensors") for name in ("with", "of"))
    assert set(have) == set(want)
    assert all(torch.equal(have[name], want[name]) for name in want)
    assert not any("quantized again" in note for note in said.notes)


def test_a_quant_base_is_dequantized_only_where_it_is_changed(tmp_path: Path) -> None:
    quant = ck.quantized(STATE)
    base = ck.save_pth(tmp_path / "base-quant.pth", quant)
    path = loras.write(tmp_path / "a.safetensors", loras.kohya(LOW))
    said = SilentProgress()
    chosen = Loras((Lora(str(path), 1.0, ("model",)),))
    choices: dict[str, Any] = {"linear": "int8", "allow_missing_proj_l": False, "progress": said}
    pack_checkpoint(str(base), TINY, tmp_path / "out.safetensors", loras=chosen, **choices)
    have = load_file(tmp_path / "out.safetensors")
    assert torch.equal(have["blocks.0.self_attn.v.int8_weight"], quant["blocks.0.self_attn.v.int8_weight"])
    assert torch.equal(have["blocks.0.self_attn.v.scale"], quant["blocks.0.self_attn.v.scale"])
    stem = "blocks.1.ffn.0"
    floats = {f"{t}.weight": block_dequantize(quant[f"{t}.int8_weight"], quant[f"{t}.scale"]) for t in (stem,)}
    down, up = LOW.low[stem]
    want = floats[f"{stem}.weight"] + 0.5 * up @ down
    got = block_dequantize(have[f"{stem}.int8_weight"], have[f"{stem}.scale"])
    error = float((got - want).norm() / want.norm())
    assert error < 0.01
    note = next(note for note in said.notes if "quantized again" in note)
    assert 0 < float(note.split("rounded once more they are ")[1].split("%")[0]) / 100 < 0.01


def test_a_bundle_packs_again_for_another_strength_alone(exported_tiny: Path, base: Path, tmp_path: Path) -> None:
    path = loras.write(tmp_path / "a.safetensors", loras.kohya(LOW))
    out = exported_tiny / "weights.safetensors"

    def packed(strength: float) -> tuple[bytes, list[str]]:
        said = SilentProgress()
        chosen = Loras((Lora(str(path), strength, ("model",)),))
        pack_into(str(base), TINY, out, linear=None, attention=None, progress=said, loras=chosen)
        return out.read_bytes(), said.notes

    first, _ = packed(1.0)
    again, notes = packed(1.0)
    assert first == again
    assert "weights.safetensors: unchanged, kept" in notes
    other, notes = packed(0.5)
    assert first != other
    assert "weights.safetensors: unchanged, kept" not in notes


@pytest.mark.parametrize("linear", ["int8", "bf16"])
def test_packed_weights_are_a_checkpoint_too(linear: Any, base: Path, tmp_path: Path) -> None:
    """Packed again they are the same bytes; with a LoRA, what a -quant checkpoint (or a bf16 one) becomes with it."""
    said = SilentProgress()
    choices: dict[str, Any] = {"linear": linear, "allow_missing_proj_l": False, "progress": said}
    pack_checkpoint(str(base), TINY, tmp_path / "first.safetensors", **choices)
    opened = open_packed(tmp_path / "first.safetensors", TINY, linear)
    assert opened.quantized == (linear == "int8")
    pack(opened, TINY, tmp_path / "again.safetensors", linear=linear)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes()
    path = loras.write(tmp_path / "a.safetensors", loras.dotted(PARTS, ""))
    with_it = AdaptedCheckpoint(opened, load_loras([(path, 1.0)], float_table(opened), partial=False, note=print))
    want = loras.merged(STATE, (PARTS, 1.0))
    for name in touched_by(PARTS):
        have = with_it.load(name).reshape(want[name].shape)
        assert float((have - want[name]).norm() / want[name].norm()) < 0.01, name


def test_packed_weights_of_something_else_are_refused(base: Path, tmp_path: Path) -> None:
    choices: dict[str, Any] = {"linear": "int8", "allow_missing_proj_l": False, "progress": SilentProgress()}
    pack_checkpoint(str(base), TINY, tmp_path / "a.safetensors", **choices)
    with pytest.raises(UserError, match="does not hold weights that were packed for this model"):
        open_packed(tmp_path / "a.safetensors", TINY, "bf16")
    with pytest.raises(UserError, match="does not hold weights that were packed for this model"):
        open_packed(base, TINY, "int8")


def test_compare_merges_as_pack_does(exported_tiny: Path, base: Path, tmp_path: Path) -> None:
    """What compare makes of checkpoint and LoRAs anew is what the bundle holds, byte for byte; so is the mistake."""
    from exporter.compare.machines.weights import BundleWeights, CheckpointWeights
    from exporter.compare.roster import open_roster
    from exporter.compare.spec import CompareSpec

    path = loras.write(tmp_path / "a.safetensors", loras.kohya(LOW))
    typed = LoraArguments((f"{path}:0.5",))
    out = exported_tiny / "weights.safetensors"
    said = SilentProgress()
    pack_into(str(base), TINY, out, linear=None, attention=None, progress=said, loras=typed.of(TINY))
    roster = open_roster(CompareSpec(exported_tiny, str(base), ("fp32", "quantized"), loras=typed), said)
    assert isinstance(roster.deployed, BundleWeights)
    readers = {"model": adapted(base, (path, 0.5))}
    fresh = CheckpointWeights(readers, TINY, "int8")("model", "block", 1)
    held = roster.deployed("model", "block", 1)
    assert all(torch.equal(fresh[name], held[name]) for name in fresh)
    with pytest.raises(UserError, match="and there is no checkpoint"):
        open_roster(CompareSpec(exported_tiny, None, loras=typed), said)


@pytest.fixture
def exported_tiny(tmp_path: Path) -> Path:
    """A bundle without engines: a manifest is what packing into one needs."""
    from tests.support.random_bundle import make_random_bundle

    folder = tmp_path / "bundle"
    folder.mkdir()
    make_random_bundle(folder, TINY)
    return folder


# --- what does not fit ---

REFUSED: dict[str, tuple[Callable[[], ck.State], str]] = {
    "nothing matches": (lambda: {"x.lora_A.weight": torch.zeros(2, 2)}, "changes what the model does not have"),
    "CLIP's layers": (
        lambda: loras.kohya(LOW) | {"lora_unet_blocks_0_cross_attn_k_img.lora_down.weight": torch.zeros(4, 256)},
        "1 of 37 that match nothing.*k_img.*--lora-partial",
    ),
    "another size": (
        lambda: {
            "blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 5120),
            "blocks.0.self_attn.q.lora_B.weight": torch.zeros(5120, 4),
        },
        "for a model of another size.*up .5120, 4. and down .4, 5120.",
    ),
    "half": (lambda: {"blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 256)}, "half of its change"),
    "twice": (
        lambda: loras.peft(BARE, "") | {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 256)},
        "changes blocks.0.self_attn.q.weight twice",
    ),
    "DoRA": (
        lambda: loras.kohya(LOW) | {"lora_unet_blocks_0_self_attn_q.dora_scale": torch.zeros(256)},
        "another kind: DoRA",
    ),
    "LoHa": (lambda: {"lora_unet_blocks_0_self_attn_q.hada_w1_a": torch.zeros(2)}, "another kind: LoHa"),
    "a low rank of a vector": (
        lambda: {
            "blocks.0.norm3.lora_A.weight": torch.zeros(4, 1),
            "blocks.0.norm3.lora_B.weight": torch.zeros(256, 4),
        },
        "another size",
    ),
    "a difference of another shape": (lambda: {"blocks.0.norm3.diff": torch.zeros(5)}, "another size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str, base: Path, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    path = loras.write(tmp_path / "a.safetensors", make())
    with pytest.raises(UserError, match=f"(?s){words}"):
        adapted(base, (path, 1.0))


def test_partial_goes_on_and_says_what_it_passes_over(base: Path, tmp_path: Path) -> None:
    extra = {"lora_unet_blocks_0_cross_attn_k_img.lora_down.weight": torch.zeros(4, 256)}
    path = loras.write(tmp_path / "a.safetensors", loras.kohya(LOW) | extra)
    said: list[str] = []
    reader = open_checkpoint(base, TINY)
    found = load_loras([(path, 1.0)], float_table(reader), partial=True, note=said.append)
    assert set(found.changes) == touched_by(LOW)
    assert "1 of 37 tensors match nothing" in said[0]
    nothing = loras.write(tmp_path / "b.safetensors", extra)
    with pytest.raises(UserError, match="changes what the model does not have"):
        load_loras([(nothing, 1.0)], float_table(reader), partial=True, note=said.append)


def test_nan_is_refused_when_it_is_read(base: Path, tmp_path: Path) -> None:
    bad = loras.kohya(LOW)
    bad["lora_unet_blocks_1_ffn_2.lora_up.weight"][3, 1] = torch.nan
    path = loras.write(tmp_path / "a.safetensors", bad)
    with pytest.raises(UserError, match=r"a\.safetensors holds NaN or infinity"):
        adapted(base, (path, 1.0)).load("blocks.1.ffn.2.weight")


@pytest.mark.parametrize("config", ["[]", "{", '{"lora_alpha": "x"}', '{"alpha_pattern": {"q": 1}}'])
def test_a_config_that_does_not_say_alpha_is_refused(config: str, base: Path, tmp_path: Path) -> None:
    loras.write(tmp_path / "adapter_model.safetensors", loras.peft(BARE))
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(UserError, match="does not say the LoRA's alpha"):
        adapted(base, (tmp_path, 1.0))


# --- options ---


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("org/repo:a.safetensors", ("org/repo:a.safetensors", 1.0)),
        ("org/repo:a.safetensors:-0.5", ("org/repo:a.safetensors", -0.5)),
        ("org/repo:1", ("org/repo", 1.0)),
    ],
)
def test_strengths(text: str, parsed: tuple[str, float]) -> None:
    assert parse_lora(text) == parsed


@pytest.mark.parametrize("text", ["a:nan", "a:inf", ":0.5", ""])
def test_strengths_that_cannot_be_used(text: str) -> None:
    with pytest.raises(UserError, match="strength cannot be used"):
        parse_lora(text)


def test_experts_have_loras_of_their_own() -> None:
    found = LoraArguments(("a",), ("b:0.5",), ("c",)).of(I2V)
    assert [(lora.source, lora.strength) for lora in found.of("high-noise")] == [("a", 1.0), ("b", 0.5)]
    assert [lora.source for lora in found.of("low-noise")] == ["a", "c"]
    with pytest.raises(UserError, match="for a model of two experts"):
        LoraArguments(high=("b",)).of(TINY)
    with pytest.raises(UserError, match="--lora-partial is about LoRAs"):
        LoraArguments(partial=True).of(TINY)
    with pytest.raises(UserError, match="and there is no checkpoint"):
        export_spec(model="wan-tiny", gpu="rtx5090", loras=LoraArguments(("a",)))
