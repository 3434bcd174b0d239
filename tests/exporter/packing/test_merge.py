"""Merging against the formula, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporter.checkpoint.reader import open_checkpoint
from exporter.models import MODELS
from exporter.packing.merge import merge
from plugins.errors import UserError
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
            want = (b + weight * (s - b) + (r - b)).to(torch.bfloat16)
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


def test_weight_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finite"):
        merge(*_save(tmp_path), tmp_path / "out", weight=float("nan"))
