"""Merging against the formula, tensor by tensor."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.checkpoint.reader import open_checkpoint
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.models import MODELS
from exporter.packing.merge import merge
from plugins.errors import UserError
from plugins.torch_dtypes import dtype_name
from tests.support import checkpoints as ck

TINY = MODELS["wan-tiny"]
BASE = ck.without_proj_l(ck.canonical_state_dict(TINY, 1))
SLA = {name: value.float() for name, value in ck.canonical_state_dict(TINY, 2).items()}
RCM = ck.without_proj_l(ck.canonical_state_dict(TINY, 3))


def _save(folder: Path, base: ck.State = BASE, sla: ck.State = SLA, rcm: ck.State = RCM) -> tuple[Path, Path, Path]:
    """Three different forms on purpose: a sharded diffusers folder, a training file, Wan's own."""
    return (
        ck.save_sharded(folder / "base", ck.diffusers(base)).parent,
        ck.save_pth(folder / "sla.pth", ck.prefixed(sla, "net."), wrapped=True),
        ck.save_safetensors(folder / "rcm.safetensors", ck.conv3d(rcm)),
    )


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_formula(weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.packing.merge._PIECE", 1000)  # pieces must not show
    out = tmp_path / "out" / "merged.safetensors"
    merge(*_save(tmp_path), out, weight=weight)
    got = load_file(out)
    assert set(got) == set(SLA)
    for name, value in got.items():
        if "proj_l" in name:
            want = SLA[name]
        else:
            b, s, r = BASE[name].float(), SLA[name].float(), RCM[name].float()
            want = b + weight * (s - b) + (r - b)  # SLA's are fp32: the widest of the three
        assert value.dtype == want.dtype, name
        assert torch.equal(value, want), name
    assert open_checkpoint(out, TINY).has_proj_l


def test_same_input_same_bytes_and_progress(tmp_path: Path) -> None:
    paths = _save(tmp_path)
    seen: list[tuple[int, int]] = []
    merge(*paths, tmp_path / "a", progress=lambda done, total: seen.append((done, total)))
    merge(*paths, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rcm": {k: v for k, v in RCM.items() if k != "blocks.1.ffn.0.bias"}}, "rcm lacks blocks.1.ffn.0.bias"),
        ({"sla": {**SLA, "extra.weight": torch.zeros(2)}}, "sla has extra.weight"),
        ({"rcm": {**RCM, "head.head.bias": torch.zeros(3)}}, r"rcm head.head.bias: \[3\] where the base has \[64\]"),
        ({"sla": ck.without_proj_l(SLA)}, r"\(sla\) lacks proj_l"),
        ({"rcm": ck.canonical_state_dict(TINY, 3)}, r"\(rcm\) holds proj_l"),
        ({"base": ck.quantized(BASE)}, r"\(base\) is a -quant"),
        ({"base": {**BASE, "head.head.bias": torch.zeros(64, dtype=torch.int64)}}, "int64"),
    ],
    ids=["missing", "unexpected", "shape", "no proj_l", "two proj_l", "quant", "integers"],
)
def test_disagreement_is_refused(change: dict[str, ck.State], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    with pytest.raises(UserError, match=message):
        merge(*_save(tmp_path / "in", **change), out)
    assert out.read_bytes() == b"old"


def test_interrupted_merge_leaves_the_old_file(tmp_path: Path) -> None:
    paths = _save(tmp_path / "in")
    (tmp_path / "o").mkdir()
    (tmp_path / "o/out").write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(*paths, tmp_path / "o/out", progress=stop)
    assert [path.read_bytes() for path in (tmp_path / "o").iterdir()] == [b"old"]


def _cast(state: ck.State, dtype: torch.dtype) -> ck.State:
    return {name: value.to(dtype) for name, value in state.items()}


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [
        ((torch.bfloat16, torch.bfloat16, torch.bfloat16), torch.bfloat16),
        ((torch.bfloat16, torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float16, torch.float16), torch.float16),
    ],
)
def test_the_result_is_of_the_widest_dtype_and_says_so(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype], wanted: torch.dtype, tmp_path: Path
) -> None:
    states = [_cast(state, dtype) for state, dtype in zip((BASE, SLA, RCM), dtypes, strict=True)]
    said: list[str] = []
    merge(*_save(tmp_path, *states), tmp_path / "out", note=said.append)
    got = load_file(tmp_path / "out")
    assert {value.dtype for name, value in got.items() if "proj_l" not in name} == {wanted}
    assert {value.dtype for name, value in got.items() if "proj_l" in name} == {dtypes[1]}
    assert f"the result is {dtype_name(wanted)} (" in said[1]
    assert said[0].startswith(
        "base is base, the pretrained model; sla is sla.pth, its sparse-linear attention training"
    )


# --- base and rCM swapped ---


def _trainings(sla_size: float, rcm_size: float) -> tuple[ck.State, ck.State, ck.State]:
    """A base and two trainings of it, in fp32, that differ from it by so much of its own size."""
    generator = torch.Generator().manual_seed(5)

    def trained(size: float) -> ck.State:
        return {n: v + size * v.std() * torch.randn(v.shape, generator=generator) for n, v in base.items()}

    base = _cast(BASE, torch.float32)
    own = {name: value for name, value in SLA.items() if "proj_l" in name}
    return base, trained(sla_size) | own, trained(rcm_size)


def _merged(folder: Path, base: ck.State, sla: ck.State, rcm: ck.State, names: tuple[str, str] = ("a", "c")) -> None:
    first, second = (
        ck.save_safetensors(folder / f"{n}.safetensors", s) for n, s in zip(names, (base, rcm), strict=True)
    )
    merge(first, ck.save_safetensors(folder / "b.safetensors", sla), second, folder / "out.safetensors")


@pytest.mark.parametrize(("sla_size", "rcm_size"), [(0.1, 0.1), (0.1, 0.05), (0.01, 0.3)])
def test_base_and_rcm_swapped_show_in_the_distances(sla_size: float, rcm_size: float, tmp_path: Path) -> None:
    base, sla, rcm = _trainings(sla_size, rcm_size)
    _merged(tmp_path, base, sla, rcm)
    (tmp_path / "out.safetensors").unlink()
    with pytest.raises(UserError, match=r"seem to be swapped(.|\n)*base is farther from sla than rcm is"):
        _merged(tmp_path, rcm, sla, base)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("base", "rcm", "wrong"),
    [
        ("rCM-1.3B", "wan", True),
        ("wan_distilled", "c", True),
        ("a", "wan-base", True),
        ("rcm", "rcm-2", False),
        ("wan2.1", "wan2.1-rcm", False),
        ("rcm-base", "rcm", False),
        ("marcmodel", "based", False),
    ],
)
def test_base_and_rcm_swapped_show_in_the_names(base: str, rcm: str, wrong: bool, tmp_path: Path) -> None:
    states = BASE, SLA, RCM  # of no kinship: their distances say nothing
    if wrong:
        with pytest.raises(UserError, match="seem to be swapped"):
            _merged(tmp_path, *states, names=(base, rcm))
    else:
        _merged(tmp_path, *states, names=(base, rcm))


def test_names_recorded_in_a_file_count(tmp_path: Path) -> None:
    paths = _save(tmp_path)
    paths[2].rename(tmp_path / "c.safetensors")
    save_file(BASE, tmp_path / "x.safetensors", {"modelspec.title": "Wan2.1 rCM"})
    with pytest.raises(UserError, match="seem to be swapped"):
        merge(tmp_path / "x.safetensors", paths[1], tmp_path / "c.safetensors", tmp_path / "out")


def test_the_result_records_what_it_was_made_of(tmp_path: Path) -> None:
    merge(*_save(tmp_path), tmp_path / "out", weight=0.5)
    recorded = SafetensorsFile(tmp_path / "out").metadata
    assert recorded == {
        "format": "pt",
        "merged_base": "base",
        "merged_sla": "sla.pth",
        "merged_rcm": "rcm.safetensors",
        "merged_weight": "0.5",
    }


# --- NaN and infinity ---

NAME, PROJ_L = "blocks.1.ffn.0.weight", "blocks.0.self_attn.attn_op.local_attn.proj_l.weight"


def _spoilt(state: ck.State, name: str, value: float) -> ck.State:
    tensor = state[name].clone()
    tensor.view(-1)[-1] = value
    return state | {name: tensor}


@pytest.mark.parametrize(("role", "value"), [("base", math.nan), ("sla", math.inf), ("rcm", -math.inf)])
def test_nan_is_refused_with_the_tensors_name(role: str, value: float, tmp_path: Path) -> None:
    states = {"base": BASE, "sla": SLA, "rcm": RCM}
    states[role] = _spoilt(states[role], NAME, value)
    with pytest.raises(UserError, match=rf"merged {NAME} would hold NaN(.|\n)*got: NaN or infinity in {role}"):
        merge(*_save(tmp_path / "in", **states), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nan_in_proj_l_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{PROJ_L} holds NaN"):
        merge(*_save(tmp_path / "in", sla=_spoilt(SLA, PROJ_L, float("nan"))), tmp_path / "out")


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 6e4), (torch.float32, 3e38), (torch.bfloat16, 3e38)])
def test_a_sum_that_overflows_is_refused(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    base = _spoilt(_cast(BASE, dtype), NAME, -value)
    sla, rcm = (_spoilt(_cast(state, dtype), NAME, value) for state in (SLA, RCM))
    with pytest.raises(UserError, match=rf"merged {NAME} would hold(.|\n)*a sum that overflows"):
        merge(*_save(tmp_path / "in", base, sla, rcm), tmp_path / "out")


def test_weight_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finite"):
        merge(*_save(tmp_path), tmp_path / "out", weight=float("nan"))
