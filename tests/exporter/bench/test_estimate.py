"""turbotrt estimate: rooflines, what times on the H200 and on a proxy make of them, and what it says of itself."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from typer.testing import CliRunner

from exporter.bench import by_h200, by_proxy, measured, published
from exporter.bench.block_graph import OpCall, block_calls
from exporter.bench.by_h200 import efficiency, h200_estimates, transfer_errors
from exporter.bench.by_proxy import carried_over, model_error, nearest
from exporter.bench.estimate import estimate, estimate_block
from exporter.bench.launches import Multiplying
from exporter.bench.measured import LaunchTime, Measured, Proxy
from exporter.bench.proxy import HOPPER_RATES, LIMITS, RTX
from exporter.bench.roofline import limit
from exporter.cli.app import app
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.networks.dit.options import BlockOptions
from plugins.cost import Cost, cost
from plugins.registry import OPS

TINY, H200, RTX3090, RTX5090 = MODELS["wan-tiny"], GPUS["h200"], GPUS["rtx3090"], GPUS["rtx5090"]
H100 = Proxy("NVIDIA H100 80GB HBM3", 120)
GEMM_DIMS = {"M": 75600, "K": 5120, "N": 5120}
PRODUCTS = 2 * 75600 * 5120 * 5120


def gemm_call(dims: dict[str, int] = GEMM_DIMS) -> OpCall:
    m, n, k = dims["M"], dims["N"], dims["K"]
    blocks = [-(-size // 128) for size in (m, n, k)]
    return OpCall(OPS["BlockInt8Gemm"], ((m, k), (blocks[0], blocks[2]), (n, k), (blocks[1], blocks[2]), (n,)), ())


def kernel_cost(dims: dict[str, int]) -> Cost:
    return cost(OPS["BlockInt8Gemm"], dims, {})


def test_limit_is_the_slower_of_memory_and_tensor_cores() -> None:
    assert limit(Cost(4_800_000_000, {"int8": 1e12}), H200).ms == pytest.approx(1.0)
    assert limit(Cost(4_800_000_000, {"int8": 1e12}), H200).bound == "memory"
    both = limit(Cost(1, {"int8": 1979e9, "fp16": 2 * 989e9}), H200)
    assert both.ms == pytest.approx(3.0)
    assert both.bound == "fp16"
    assert limit(Cost(1, {"fp8": 142e9}), RTX3090).ms == pytest.approx(1.0), "no FP8: FP16, added in FP16"
    assert limit(Cost(1, {"fp16": 71e9}), RTX3090).ms == pytest.approx(1.0), "added in FP32 at half the rate"


def test_measurements_are_of_present_ops() -> None:
    """A renamed or changed op leaves stale measurements behind: remove them or measure anew."""
    for run in measured.runs():
        assert run.gpu in GPUS
        assert run.model in MODELS
        for entry in run.kernels:
            op = OPS[entry.op]
            assert set(entry.dims) == set(op.symbol_sources()), entry
            assert set(entry.attributes) == {attr.name for attr in op.attributes}, entry
            assert entry.ms > 0


def test_efficiency_is_of_the_nearest_size() -> None:
    op = OPS["BlockInt8Gemm"]
    small, large = ({"M": m, "K": 5120, "N": 5120} for m in (1000, 100_000))
    at_limit = [limit(kernel_cost(dims), H200).ms for dims in (small, large)]
    known = [
        measured.Measured("BlockInt8Gemm", dims, {}, ms * slower)
        for dims, ms, slower in zip((small, large), at_limit, (4, 2), strict=True)
    ]
    assert efficiency(op, {"M": 2000, "K": 5120, "N": 5120}, {}, known) == pytest.approx(1 / 4)
    assert efficiency(op, {"M": 90_000, "K": 5120, "N": 5120}, {}, known) == pytest.approx(1 / 2)
    assert efficiency(OPS["RmsNorm"], {"L": 1, "E": 8, "D": 8}, {}, known) is None


def test_a_measured_op_is_estimated_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = block_calls(TINY, BlockOptions())
    chosen = next(call for call in calls if call.op.name == "BlockInt8Gemm")
    entry = measured.Measured(chosen.op.name, chosen.dims, dict(chosen.attributes), 0.125)
    monkeypatch.setattr("exporter.bench.by_h200.measured_ops", lambda gpu, portable: [entry])
    on_h200 = {e.call: e for e in estimate_block(TINY, H200, BlockOptions())}
    assert on_h200[chosen].ms == pytest.approx(0.125)
    assert all(e.basis == "limit" and e.ms == e.limit.ms for e in on_h200.values() if e.call.op != chosen.op)
    assert transfer_errors(chosen.op.name) == []


def test_another_share_of_kept_blocks_is_another_size() -> None:
    """Attention at another top-k is as efficient as where it was measured: the estimate then rises with the share."""
    (call,) = (call for call in block_calls(TINY, BlockOptions()) if dict(call.attributes).get("topk_milli"))
    entry = measured.Measured(call.op.name, call.dims, dict(call.attributes), 0.125)
    reached = efficiency(call.op, call.dims, dict(call.attributes), [entry])
    assert efficiency(call.op, call.dims, {**dict(call.attributes), "topk_milli": 500}, [entry]) == reached
    assert efficiency(call.op, call.dims, {**dict(call.attributes), "precision": "bf16"}, [entry]) is None


def test_transfer_error(monkeypatch: pytest.MonkeyPatch) -> None:
    dims = [{"M": m, "K": 5120, "N": 5120} for m in (10_000, 20_000)]
    known = [
        measured.Measured("BlockInt8Gemm", d, {}, limit(kernel_cost(d), H200).ms * slower)
        for d, slower in zip(dims, (2, 4), strict=True)
    ]
    monkeypatch.setattr("exporter.bench.by_h200.measured_ops", lambda gpu, portable: known)
    assert transfer_errors("BlockInt8Gemm") == pytest.approx([1.0, -0.5])


def test_what_an_sm_does_in_a_clock_is_what_the_parts_publish() -> None:
    """The tables of GPUs and SMs say the same: peaks have the rates' ratios, and SMs and clocks make the peak."""
    for gpu in GPUS.values():
        rates = gpu.rates
        assert (rates is None) == (gpu.cubin_sm not in RTX)
        if rates is None:
            continue
        assert gpu.fp16 / gpu.int8 == pytest.approx(rates.fp16 / rates.int8, rel=2e-3), gpu.name
        assert (gpu.fp8 or 0) / gpu.int8 == pytest.approx((rates.fp8 or 0) / rates.int8, rel=2e-3), gpu.name
        assert gpu.fp16_sum_rate == rates.fp16_in_fp16 / rates.fp16 or gpu.name == "a100"
    assert RTX5090.sm_clocks == pytest.approx(170 * 2.407, rel=1e-3)  # SMs and boost clock, GHz
    assert GPUS["rtx4090"].sm_clocks == pytest.approx(128 * 2.52, rel=1e-3)
    assert GPUS["a100"].sm_clocks == pytest.approx(108 * 1.41, rel=1e-3)
    assert LIMITS["H100"].sm_clocks == pytest.approx(132 * 1.767, rel=1e-3)
    assert HOPPER_RATES.int8 == pytest.approx(4 * 2 * 16 * 8 * 32 / 6.01, rel=3e-3)
    with pytest.raises(ValueError, match="not in the table"):
        _ = H200.sm_clocks


def test_products_are_carried_over_by_models_and_the_rest_by_bandwidth() -> None:
    """9 ms at 2,000 operations a clock on the proxy; 1,000 on the part, whose SMs make 409.18 to 233.3 10⁹ clocks."""
    entry = Measured("BlockInt8Gemm", GEMM_DIMS, {}, 10.0, [LaunchTime("a", 1.0), LaunchTime("b", 9.0)], 2000.0)
    moving, multiplying = 3350 / 1792, 2000 * (1274 / 5461) / (1000 * (838 / 2048))
    same = carried_over((H100, entry), kernel_cost(GEMM_DIMS), RTX5090, 1000.0)
    assert same == pytest.approx(moving + 9 * multiplying)
    twice = kernel_cost(GEMM_DIMS | {"M": 151200})
    half_more = kernel_cost(GEMM_DIMS).bytes / twice.bytes
    assert carried_over((H100, entry), twice, RTX5090, 1000.0) == pytest.approx(moving / half_more + 18 * multiplying)
    assert carried_over((H100, entry), kernel_cost(GEMM_DIMS), RTX5090, None) == pytest.approx(10 * moving)
    assert model_error((H100, entry)) == pytest.approx(PRODUCTS / (2000 * 1274e12 / 5461) / 9e-3 - 1)
    assert model_error((H100, msgspec.structs.replace(entry, rate=None))) is None


def test_the_nearest_measurement_is_of_the_size_then_of_the_sm() -> None:
    ada = Proxy(H100.device, 89)
    launches = [LaunchTime("k", 1.0)]
    exact = [(proxy, Measured("BlockInt8Gemm", GEMM_DIMS, {}, 1.0, launches)) for proxy in (ada, H100)]
    other = (H100, Measured("BlockInt8Gemm", GEMM_DIMS | {"M": 1000}, {}, 1.0, launches))
    assert nearest(gemm_call(), 120, [other, *exact]) == exact[1]
    assert nearest(gemm_call(), 86, [other, exact[0]]) == exact[0]
    assert nearest(gemm_call(), 120, [other]) == other
    assert nearest(gemm_call(), 120, []) is None


def test_an_estimate_says_what_it_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by proxy, by the model alone, at the limit; never below the limit, and never from the H200."""
    monkeypatch.setattr("exporter.bench.by_h200.measured_ops", None)
    calls = block_calls(TINY, BlockOptions())
    gemm = next(call for call in calls if call.op.name == "BlockInt8Gemm")
    entry = Measured(gemm.op.name, gemm.dims, dict(gemm.attributes), 5.0, [LaunchTime("gemm", 5.0)], 2000.0)
    monkeypatch.setattr(by_proxy, "proxied_ops", lambda: [(H100, entry)])
    monkeypatch.setattr(
        by_proxy, "multiplying", lambda plans, sm, rates: dict.fromkeys(plans, Multiplying(0.5, 1000.0))
    )
    found = {one.call: one for one in estimate_block(TINY, RTX5090, BlockOptions())}
    assert found[gemm].basis == "measured"
    assert found[gemm].ms == pytest.approx(5 * 2000 * (1274 / 5461) / (1000 * (838 / 2048)))
    assert found[gemm].row["proxy"]["device"] == H100.device
    for call, one in found.items():
        products = sum(one.cost.operations.values())
        if call.op.name != gemm.op.name:
            assert one.basis == ("model" if products else "limit")
        if one.basis == "model":
            assert one.ms == pytest.approx(max(one.limit.ms, products / (1000 * (838e12 / 2048)) * 1e3))
    fast = msgspec.structs.replace(entry, ms=1e-9, launches=[LaunchTime("gemm", 1e-9)])
    monkeypatch.setattr(by_proxy, "proxied_ops", lambda: [(H100, fast)])
    (one,) = (one for one in estimate_block(TINY, RTX5090, BlockOptions()) if one.call == gemm)
    assert one.ms == one.limit.ms


def test_the_model_predicts_what_was_measured() -> None:
    """On the proxy, of every kernel that multiplies for a millisecond within 20 %, of shorter ones within 30 %.

    Those hardly fill the GPU: what the last programs leave idle is not in the model. The context's projection, of 0.11
    ms, leaves most of it so: 160 tiles are two rounds of 132 SMs.
    """
    known = [(entry, model_error((proxy, entry))) for proxy, entry in measured.proxied_ops() if entry.ms > 0.2]
    assert all((error is None) == (entry.cost.total == 0) for entry, error in known)

    assert [(entry, error) for entry, error in known if abs(error or 0) > (0.2 if entry.ms > 1 else 0.3)] == []


def test_rtx_parts_are_estimated_by_proxy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_h200, "measured_ops", None)
    result = CliRunner().invoke(app, ["estimate", "--model", "wan-tiny", "--gpu", "rtx5090", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["estimate"], found["by_proxy"], found["steps"]) == (True, True, 3)
    assert found["block_ms"] == pytest.approx(sum(row["count"] * row["ms"] for row in found["kernels"]))
    assert found["step_ms"] == pytest.approx(TINY.layers * found["block_ms"])
    assert found["steps_seconds"] == pytest.approx(3 * found["step_ms"] / 1e3)
    assert found["step_limit_ms"] <= found["step_ms"]
    assert all(row["traffic_bytes"] > 0 for row in found["kernels"])
    assert {row["tensor_share"] is None for row in found["kernels"] if row["operations"]} == {False}
    assert found["published_seconds"] is None
    shown = CliRunner().invoke(app, ["estimate", "--model", "wan-tiny", "--gpu", "rtx5090", "--steps", "2"]).output
    said = " ".join(shown.split())
    assert "ESTIMATE, not a measurement" in shown
    assert "nothing was ever executed on a GeForce RTX 5090" in said
    assert "measured: kernels of sm_120 from their PTX on NVIDIA H100" in said
    assert "2 steps' blocks" in said
    assert "the proxy does not show: sm_120's bulk tensor copies" in said


def test_other_parts_are_estimated_from_the_h200() -> None:
    found = estimate(MODELS["wan2.1-14b-720p"], GPUS["h100"], BlockOptions())
    assert not found["by_proxy"]
    assert found["h200_error"] == pytest.approx(0, abs=0.1)
    shown = CliRunner().invoke(app, ["estimate", "--model", "wan2.1-1.3b-480p", "--gpu", "h100"]).output
    assert "measured 154 ms" in " ".join(shown.split())


def test_published_times_stand_beside_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = MODELS["wan2.1-14b-720p"], BlockOptions()
    monkeypatch.setattr("exporter.bench.estimate.proxy_estimates", lambda calls, gpu: h200_estimates(calls, H200))
    assert estimate(model, RTX5090, options)["published_seconds"] == 24.0
    assert set(published.SECONDS) == {name for name in MODELS if name != "wan-tiny"}
    for gpu, other, steps in (
        (RTX5090, options, 4),
        (GPUS["rtx5080"], options, 3),
        (RTX5090, replace(options, topk_milli=150), 3),
    ):
        assert estimate(model, gpu, other, steps)["published_seconds"] is None


def printed(**changes: object) -> bytes:
    """What bench prints, of an op that takes 2 ms in the last of two launches."""
    row = {"op": "RmsNorm", "dims": {"L": 8, "E": 4, "D": 4}, "attributes": {}, "ms": 3.00004, "share": 0.5}
    row |= {"launches": [{"kernel": "a", "ms": 1.0}, {"kernel": "b", "ms": 2.00004}], "rate": 12.345}
    found = {"gpu": "rtx5090", "model": "wan-tiny", "source": "new", "kernels": [row], "block_ms": 3.0}
    options = {"attention": "sagesla", "topk_milli": 100, "linear": "int8"}
    proxy = {"device": "NVIDIA H200", "kernels_of_sm": 120, "leaves_out": []}
    return json.dumps({**found, **options, "proxy": proxy} | changes).encode()


def test_what_bench_prints_is_taken_over() -> None:
    """New kernels take the place of the old ones of the same GPU, model and kind; a step's time stays, or is set."""
    old = measured.Run("rtx5090", "wan-tiny", "old", step_ms=7.0, proxy=H100)
    native = measured.Run("rtx5090", "wan-tiny", "itself")
    got = measured.taken_over([native, old], printed())
    assert got[0] == native
    assert (got[1].source, got[1].step_ms, got[1].proxy) == ("new", 7.0, Proxy("NVIDIA H200", 120))
    assert [kernel.rate for kernel in got[1].kernels] == [12.345]
    step = measured.taken_over(got, printed(kernels=[], step_ms=9.0, source="later"))
    assert (step[1].source, step[1].step_ms, step[1].kernels) == ("new", 9.0, got[1].kernels)
    assert len(measured.taken_over([native], printed())) == 2
    with pytest.raises(ValueError, match="default options"):
        measured.taken_over([], printed(topk_milli=150))
    text = measured.dumped(step)
    assert measured.dumped(msgspec.json.decode(text, type=list[measured.Run])) == text
    assert '"ms":2.0}' in text


def test_the_committed_measurements_are_as_the_tool_writes_them() -> None:
    assert measured.dumped(measured.runs()) == measured.FILE.read_text()
    assert all(kernel.launches for _, kernel in measured.proxied_ops())
