"""turbotrt tune and bench where no GPU is: their arithmetic, the graph they walk, and their refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from exporter.bench.block_graph import OpCall, block_calls, block_graph, op_calls
from exporter.bench.kernels import MeasuringInterpreter, kernel_row, run_graph
from exporter.bench.launches import launch_times
from exporter.bench.measured import LaunchTime, Measured, Proxy
from exporter.bench.proxy import LIMITS, Bench
from exporter.bench.synthetic import block_inputs, block_weights
from exporter.bench.tune import Tuned, tune_call, updated, write
from exporter.cli.app import app
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import dit_functions
from plugins import configs
from plugins.plan import decode, encode
from plugins.registry import OPS
from plugins.sass.units import UNITS
from tests.support.progress import SilentProgress

TINY, H200, RTX3090 = MODELS["wan-tiny"], GPUS["h200"], GPUS["rtx3090"]
GEMM = {"M": 1280, "K": 256, "N": 256}


def gemm_call(dims: dict[str, int] = GEMM) -> OpCall:
    m, n, k = dims["M"], dims["N"], dims["K"]
    blocks = [-(-size // 128) for size in (m, n, k)]
    shapes = ((m, k), (blocks[0], blocks[2]), (n, k), (blocks[1], blocks[2]), (n,))
    return OpCall(OPS["BlockInt8Gemm"], shapes, ())


def test_graph_is_the_block_and_every_call_is_measured_once() -> None:
    options = BlockOptions()
    seen: list[OpCall] = []

    def measure(call: OpCall, inputs: Sequence[torch.Tensor]) -> float:
        assert tuple(tuple(tensor.shape) for tensor in inputs) == call.shapes
        seen.append(call)
        return 1.0

    graph = block_graph(TINY, options, TINY.tokens())
    interpreter = MeasuringInterpreter(graph, Bench(H200, "none"), measure)
    inputs, weights = block_inputs(TINY, 0, "cpu", TINY.latent_shape()), block_weights(TINY, options, 1, "cpu")
    got = run_graph(interpreter, inputs, weights)
    assert torch.equal(got, dit_functions(options)["block"](*inputs, weights))
    assert len(seen) == len(set(seen))
    assert interpreter.counts == block_calls(TINY, options)
    assert sum(interpreter.counts.values()) == len(op_calls(graph))


def test_synthetic_weights_are_like_trained_ones() -> None:
    weights = block_weights(TINY, BlockOptions(), 1, "cpu")
    q, scale = weights["ffn.0.int8_weight"], weights["ffn.0.scale"]
    values = q.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert float(values.var()) == pytest.approx(1 / 256, rel=0.05)
    assert not torch.equal(q, block_weights(TINY, BlockOptions(), 2, "cpu")["ffn.0.int8_weight"])


def test_kernel_row() -> None:
    launches = [LaunchTime("prepare", 1.0), LaunchTime("multiply", 3.0)]
    row = kernel_row(gemm_call({"M": 75600, "K": 5120, "N": 5120}), 3, launches, H200)
    assert row["tops"] == pytest.approx(2 * 75600 * 5120 * 5120 / 4e-3 / 1e12)
    assert row["share"] == pytest.approx(row["limit_ms"] / 4.0)
    assert (row["count"], row["bound"], row["ms"]) == (3, "int8", 4.0)
    assert row["launches"] == [{"kernel": "prepare", "ms": 1.0}, {"kernel": "multiply", "ms": 3.0}]


def test_a_launch_takes_what_the_plan_takes_longer_with_it() -> None:
    """The second launch adds nothing that can be seen; noise makes no time negative, and the sum is the whole."""
    (call,) = (call for call in block_calls(TINY, BlockOptions()) if call.op.name == "LayerNormQuantize")
    plan = decode(call.plan(89))
    plan = msgspec.structs.replace(plan, launches=[plan.launches[0], plan.launches[-1], plan.launches[-1]])
    times = {1: 2.0, 2: 1.9, 3: 5.0}
    found = launch_times(encode(plan), lambda data: times[len(decode(data).launches)])
    names = [plan.kernels[launch.kernel].name for launch in plan.launches]
    assert [(one.kernel, one.ms) for one in found] == list(zip(names, (2.0, 0.0, 3.0), strict=True))


def test_kernels_are_modelled_and_shown_beside_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GEMM that took 2 ms on a proxy, and whose model says 1 ms there: what it multiplies in one at that rate."""
    call = next(call for call in block_calls(TINY, BlockOptions()) if call.op.name == "BlockInt8GemmGelu")
    rate = call.cost.total / (LIMITS["H100"].sm_clocks * 1e6)
    entry = Measured(call.op.name, call.dims, {}, 3.0, [LaunchTime("a", 1.0), LaunchTime("b", 2.0)], rate)
    proxy = Proxy("NVIDIA H100 80GB HBM3", 120)
    monkeypatch.setattr("exporter.bench.kernel_table.proxied_ops", lambda: [(proxy, entry)])
    command = ["kernels", "--model", "wan-tiny", "--gpu", "rtx5090"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    (row,) = (row for row in rows if row["proxied"])
    assert row["ops"] == ["BlockInt8GemmGelu"]
    (proxied,) = row["proxied"]
    assert (proxied["ms"], proxied["dims"]) == (2.0, call.dims)
    assert proxied["predicted_ms"] == pytest.approx(1.0)
    model = row["model"]
    assert set(model["cycles"]) == set(UNITS)
    assert model["bound"] == max(UNITS, key=lambda unit: model["cycles"][unit])
    assert model["share"] == pytest.approx(model["cycles"]["tensor"] / model["iteration"])
    assert {row["model"] is None for row in rows if not row["mma"]} == {True}
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"}).output
    assert "1.00/2.00" in shown
    assert f"{model['share']:.0%}" in shown


@pytest.mark.parametrize("command", [["bench", "kernels"], ["bench", "step"], ["tune"]])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu_is_one_message(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--model", "wan-tiny", "--gpu", "h200"])
    assert result.exit_code == 2
    assert "no CUDA GPU" in result.stderr


def test_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L40S")
    result = CliRunner().invoke(app, ["bench", "kernels", "--model", "wan-tiny", "--gpu", "h200"])
    assert result.exit_code == 2
    assert "9.0" in result.stderr
    assert "8.9 (NVIDIA L40S)" in result.stderr


@dataclass(frozen=True)
class Widths:
    """A config of two fields."""

    num_warps: int
    num_stages: int


def test_table_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "table", lambda: {"k": {"90": {"K=2 N=1": {"num_stages": 4}}, "80": {"": {"x": 1}}}})
    assert configs.config_for("k", 90, {"N": 1, "K": 2}, Widths(8, 2)) == Widths(8, 4)
    assert configs.config_for("k", 89, {"N": 1, "K": 2}, Widths(8, 2)) == Widths(8, 2)
    with pytest.raises(ValueError, match="no config field"):
        configs.config_for("k", 80, {}, Widths(8, 2))


def test_committed_table_is_of_present_kernels() -> None:
    assert set(configs.table()) <= {op.folder for op in OPS.values() if op.tunable}
    assert configs.dumped(configs.table()) == configs.FILE.read_text()


def test_tuning_measures_every_candidate_and_keeps_the_best() -> None:
    """The third candidate wins; each is a plan of its own, and outside the trial the table's is built again."""
    from plugins.block_int8_gemm.kernel import candidates

    plans: list[bytes] = []

    def time(plan: bytes) -> float:
        plans.append(plan)
        return 0.5 if len(plans) == 4 else 1.0

    progress = SilentProgress()
    tuned = tune_call(gemm_call(), Bench(GPUS["rtx5090"], "NVIDIA GeForce RTX 5090"), time, progress)
    assert tuned is not None
    offered = list(candidates(120))
    assert list(progress.updates.values()) == [(len(offered), len(offered))]
    assert {config.tile_m for config in candidates(90)} == {256}
    assert len(plans) == len(offered) + 1
    assert {decode(plan).sm for plan in plans} == {120}
    assert tuned.fields == asdict(offered[2])
    assert tuned.keys == ("K=256 N=256 epilogue=bias",)
    assert (tuned.old_ms, tuned.new_ms, tuned.better) == (1.0, 0.5, True)
    assert plans[0] != plans[3]
    assert gemm_call().plan(120) == plans[0]


def test_updated_table(tmp_path: Path) -> None:
    def one(key: str, old: float, new: float, stages: int) -> Tuned:
        return Tuned(gemm_call(), "block_int8_gemm", (key,), old, new, {"num_stages": stages})

    start: configs.Table = {"block_int8_gemm": {"89": {"a": {"num_stages": 2}}, "90": {"a": {"num_stages": 2}}}}
    tuned = [one("a", 5.0, 1.0, 3), one("a", 1.0, 0.5, 4), one("b", 1.0, 0.99, 4), one("c", 1.0, 0.5, 1)]
    new = updated(start, tuned, 90)
    assert new["block_int8_gemm"]["90"] == {"a": {"num_stages": 3}, "c": {"num_stages": 1}}
    assert new["block_int8_gemm"]["89"] == start["block_int8_gemm"]["89"]
    assert start["block_int8_gemm"]["90"] == {"a": {"num_stages": 2}}
    write(tmp_path / "configs.json", new)
    assert json.loads((tmp_path / "configs.json").read_text()) == new
    assert [path.name for path in tmp_path.iterdir()] == ["configs.json"]
