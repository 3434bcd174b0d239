"""RTX parts by proxy without a GPU: whose kernels run where, what is refused, and what is said of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from exporter.bench import kernels, synthetic
from exporter.bench.block_graph import OpCall
from exporter.bench.proxy import HOPPER, HOPPER_RATES, LEAVES_OUT, LIMITS, RTX, Bench, bench_on, held, proxy_limits
from exporter.cli.app import app
from exporter.gpus import GPUS
from plugins import torch_op
from plugins.configs import trying
from plugins.cubin import inspected
from plugins.plan import KernelImage, Plan, decode
from plugins.registry import OPS
from plugins.sass.report import resident_blocks
from plugins.sms import SHARED_LIMIT, SMS

H100 = "NVIDIA H100 80GB HBM3"


def present(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    """A CUDA device that is asked for nothing but what it is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)


def gemm_call() -> OpCall:
    return OpCall(OPS["BlockInt8Gemm"], ((1280, 256), (10, 2), (256, 256), (2, 2), (256,)), ())


def machine_code_of(cubin: bytes) -> str:
    """The SM that a cubin is for, as its header's flags name it."""
    (sm,) = re.findall(r"EF_CUDA_SM(\d+) ", inspected(cubin, "nvdisasm", "-c"))
    return f"sm_{sm}"


def test_an_rtx_part_runs_on_hopper_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, (9, 0), H100)
    for name in ("rtx5090", "rtx4090", "rtx3090", "a100", "dgx-spark"):
        bench = bench_on(GPUS[name])
        assert (bench.sm, bench.host) == (GPUS[name].cubin_sm, HOPPER)
    assert bench_on(GPUS["h200"]).host is None
    present(monkeypatch, (12, 0), "NVIDIA GeForce RTX 5090")
    bench = bench_on(GPUS["rtx5090"])
    assert (bench.sm, bench.host, bench.facts) == (120, None, None)
    assert bench.limits == GPUS["rtx5090"]


@pytest.mark.parametrize(("named", "capability"), [("rtx5090", (8, 9)), ("b200", (9, 0)), ("h200", (12, 0))])
def test_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, named: str, capability: tuple[int, int]) -> None:
    present(monkeypatch, capability, "NVIDIA Something")
    result = CliRunner().invoke(app, ["bench", "kernels", "--model", "wan-tiny", "--gpu", named])
    assert result.exit_code == 2
    assert GPUS[named].compute_capability in result.stderr
    assert ("or a Hopper GPU" in result.stderr) == (named == "rtx5090")


@pytest.mark.parametrize("sm", RTX)
def test_the_proxy_runs_the_parts_kernels_as_sm_90(sm: int) -> None:
    gpu = next(gpu for gpu in GPUS.values() if gpu.sm == sm)
    bench = Bench(gpu, H100, HOPPER)
    plan = decode(bench.plan(gemm_call()))
    assert plan.sm == sm
    assert {machine_code_of(kernel.cubin) for kernel in plan.kernels} == {"sm_90"}
    if sm != 120:  # its tensor copies are not what the proxy runs
        assert decode(gemm_call().plan(sm)).kernels[0].shared == plan.kernels[0].shared
    assert bench.plan(gemm_call()) is bench.plan(gemm_call())


def test_trials_are_of_the_parts_own_configs() -> None:
    from plugins.block_int8_gemm.kernel import candidates

    bench = Bench(GPUS["rtx4090"], H100, HOPPER)
    plans = set()
    for config in list(candidates(bench.sm))[:2]:
        with trying("block_int8_gemm", config):
            plans.add(bench.fresh_plan(gemm_call()))
    assert len(plans) == 2
    assert {decode(plan).sm for plan in plans} == {89}


@pytest.mark.parametrize("bytes_", [0, 20_000, 32_768, 48 * 1024, 65_536, 99 * 1024])
@pytest.mark.parametrize("sm", RTX)
def test_shared_memory_holds_as_few_programs_as_on_the_part(sm: int, bytes_: int) -> None:
    kernel = KernelImage("k", b"", 4, bytes_, 0, 0, 64, 0)
    plan = Plan("op", sm, {}, {}, [], [], [], [kernel], [])
    (padded,) = held(plan, HOPPER).kernels
    on_part = SMS[sm].shared * 1024 // (bytes_ + 1024)
    assert resident_blocks(padded, HOPPER) == min(resident_blocks(kernel, HOPPER), on_part)
    assert bytes_ <= padded.shared <= SHARED_LIMIT[HOPPER] * 1024
    assert padded.shared == bytes_ or resident_blocks(kernel, HOPPER) > on_part


def test_limits_are_of_mma_sync() -> None:
    assert set(LEAVES_OUT) == {gpu.cubin_sm for gpu in GPUS.values()} - {90, 100}
    spec = Bench(GPUS["rtx5090"], H100, HOPPER).limits
    assert (spec.int8, spec.fp16, spec.fp8, spec.fp16_sum_rate) == (1274.0, 640.0, 640.0, 1.0)
    assert proxy_limits("NVIDIA H200").spec.bandwidth == GPUS["h200"].bandwidth
    assert all(GPUS[limits.part].int8 > limits.int8 and limits.source for limits in LIMITS.values())


def test_bench_kernels_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command with a device that computes nothing: references stand for runs, a constant for times."""
    present(monkeypatch, (9, 0), H100)
    ran: list[Plan] = []

    def run(plan: bytes, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = decode(plan)
        made = torch_op.reference(OPS[found.op])(*inputs, **found.attributes)
        return list(made) if isinstance(made, tuple) else [made]

    def prepare(plan: bytes, inputs: Sequence[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
        ran.append(decode(plan))
        return lambda: None, []

    monkeypatch.setattr(kernels, "run_plan", run)
    monkeypatch.setattr(kernels, "prepared", prepare)
    monkeypatch.setattr(kernels, "median_ms", lambda run: 0.5)
    monkeypatch.setattr(
        kernels, "block_inputs", lambda model, seed, device, shape: synthetic.block_inputs(model, seed, "cpu", shape)
    )
    monkeypatch.setattr(
        kernels,
        "block_weights",
        lambda model, options, seed, device: synthetic.block_weights(model, options, seed, "cpu"),
    )
    command = ["bench", "kernels", "--model", "wan-tiny", "--gpu", "rtx5090"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {plan.sm for plan in ran} == {120}
    assert found["proxy"]["device"] == H100
    assert found["proxy"]["kernels_of_sm"] == 120
    assert found["proxy"]["leaves_out"] == list(LEAVES_OUT[120])
    assert "from their PTX" in found["source"]
    assert {row["ms"] for row in found["kernels"]} == {0.5}
    assert {sum(launch["ms"] for launch in row["launches"]) for row in found["kernels"]} == {0.5}
    multiplying = [row for row in found["kernels"] if row["tops"]]
    assert multiplying
    for row in multiplying:
        operations, clocks = row["tops"] * 0.5e9, 1274e9 / HOPPER_RATES.int8
        assert row["predicted_ms"] == pytest.approx(operations / (row["rate"] * clocks))
        assert 0.05 * HOPPER_RATES.int8 < row["rate"] < HOPPER_RATES.int8
    assert {row["rate"] for row in found["kernels"] if not row["tops"]} == {None}
    # Self-attention alone multiplies in FP8.
    assert [row["op"] for row in found["kernels"] if row["fp8_as_fp16_ms"] == 0.5] == ["SageSLAQuantize"]
    shown = CliRunner().invoke(app, command).stdout
    assert "PROXY: kernels of sm_120 from their PTX" in shown
    assert "of mma.sync" in shown
    assert "FP8 as FP16" in shown
    assert "by model" in shown
    assert "bulk tensor copies" in shown
