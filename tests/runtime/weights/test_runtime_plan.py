"""The memory plan against sums written out by hand, and the sizes it is made of against the files and the tensors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from exporter.models import MODELS
from exporter.networks.dit.weights import packed_bytes
from exporter.torch_backend.memory import PeakBytes
from exporter.torch_backend.runner import TorchRunner
from plugins.errors import UserError
from runtime.backends.tensorrt import planned_bytes
from runtime.byte_sizes import gigabytes, gigabytes_up, parse_bytes
from runtime.layout import run_layout, weight_layout
from runtime.weights.memory_plan import MemoryPlan, StageBytes, plan_memory, spread
from tests.support.random_bundle import make_random_bundle

#: 14B at 720p, in round numbers.
SIZES = StageBytes(
    embed=470_000_000,
    block=360_000_000,
    head=2_000_000,
    io=1_600_000_000,
    activations={"embed": 1_000_000_000, "block": 4_500_000_000, "head": 3_000_000_000},
    overhead=70_000_000,
)
RUNNING = 1_600_000_000 + 4_500_000_000 + 70_000_000
OWN = 472_000_000
PAIR = ("high-noise", "low-noise")


def made(budget: int | None, experts: tuple[str, ...] = ("model",), layers: int = 40) -> MemoryPlan:
    return plan_memory(SIZES, layers, experts, 75_600, budget)


@pytest.mark.parametrize(
    ("experts", "budget", "resident", "both", "peak"),
    [
        (("model",), None, 40, False, RUNNING + OWN + 40 * 360_000_000),
        (("model",), 10_000_000_000, 7, False, RUNNING + OWN + 9 * 360_000_000),
        (("model",), RUNNING + OWN + 2 * 360_000_000, 0, False, RUNNING + OWN + 2 * 360_000_000),
        # One byte less than all resident: 38 layers' worth is not streamed for two, but for three.
        (("model",), RUNNING + OWN + 40 * 360_000_000 - 1, 37, False, RUNNING + OWN + 39 * 360_000_000),
        (PAIR, None, 40, True, RUNNING + 2 * (OWN + 40 * 360_000_000)),
        (PAIR, 24_000_000_000, 40, False, RUNNING + OWN + 40 * 360_000_000),
        (PAIR, 10_000_000_000, 7, False, RUNNING + OWN + 9 * 360_000_000),
        (("high-noise",), None, 40, False, RUNNING + OWN + 40 * 360_000_000),
    ],
)
def test_plans_by_hand(experts: tuple[str, ...], budget: int | None, resident: int, both: bool, peak: int) -> None:
    plan = made(budget, experts)
    assert (len(plan.resident), plan.all_experts, plan.peak) == (resident, both, peak)
    assert plan.streamed == 40 - resident
    assert plan.smallest == RUNNING + OWN + 2 * 360_000_000
    assert budget is None or plan.peak <= budget


@pytest.mark.parametrize("experts", [("model",), PAIR])
def test_no_larger_plan_would_fit(experts: tuple[str, ...]) -> None:
    peaks = []
    for budget in range(made(None).smallest, made(None, experts).peak + 10**9, 97_000_000):
        plan = made(budget, experts)
        peaks.append(plan.peak)
        more = replace(plan, resident=spread(min(40, len(plan.resident) + 1), 40))
        assert plan.streamed == 0 or more.streamed in (1, 2) or more.peak > budget
    assert peaks == sorted(peaks)


def test_too_little_names_the_smallest_that_works() -> None:
    smallest = made(None).smallest
    with pytest.raises(UserError, match=r"at least 7\.37GB"):
        made(smallest - 1)
    assert made(parse_bytes("7.37GB")).peak == smallest
    assert made(smallest).peak == smallest


@pytest.mark.parametrize("layers", [2, 3, 30, 40])
def test_streamed_layers_lie_evenly(layers: int) -> None:
    for resident in range(layers + 1):
        kept = spread(resident, layers)
        assert len(kept) == resident
        assert kept <= set(range(1, layers + 1))
        streamed = [unit for unit in range(1, layers + 1) if unit not in kept]
        gaps = {b - a for a, b in pairwise(streamed)}
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("12GB", 12 * 10**9), ("11.5 GiB", int(11.5 * 2**30)), ("12000000", 12_000_000), ("100mb", 10**8), (7, 7)],
)
def test_sizes_are_read(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "12 parsecs", "-1GB", "GB", "0", "1e9", 0, -5, "12"])
def test_other_sizes_are_refused(text: str | int) -> None:
    with pytest.raises(UserError, match="12GB"):
        parse_bytes(text)


@pytest.mark.parametrize("count", [1, 99_999, 123_456, 10**9, 7_362_000_001, 12_345_678_901])
def test_a_budget_rounded_up_is_enough(count: int) -> None:
    assert count <= parse_bytes(gigabytes_up(count)) <= count * 1.01 + 10**5
    assert gigabytes(count).split()[1] in ("GB", "MB", "B")


def test_lines_and_json_tell_the_same() -> None:
    plan = made(10_000_000_000, PAIR)
    text, plain = "\n".join(plan.lines()), json.loads(json.dumps(plan.plain()))
    assert "at most 9.88 GB of 10.00 GB" in text
    assert "7 of 40 layers stay; 33 stream through 2 slots" in text
    assert "4.50 GB (block)" in text
    assert "take turns in the same slots" in text
    assert plain["peak_bytes"] == plan.peak == 9_882_000_000
    assert len(plain["resident_layers"]) == 7
    assert plain["pinned_bytes"] == 256 * 2**20
    assert "page-locked host memory 268.4 MB" in text
    assert plain["activation_bytes"] == dict(SIZES.activations)


def test_slots_hold_the_packed_weights(tmp_path: Path) -> None:
    model = MODELS["wan-tiny"]
    manifest = make_random_bundle(tmp_path, model)
    slots = {stage: weight_layout(manifest.stage(stage)) for stage in ("embed", "block", "head")}
    for slot in slots.values():
        places = list(slot.places.values())
        assert all(place.offset % 256 == 0 for place in places)
        assert all(a.offset + a.nbytes <= b.offset for a, b in pairwise(places))
        assert slot.nbytes >= places[-1].offset + places[-1].nbytes
    padding = 256 * sum(len(slot.places) for slot in slots.values()) * model.layers
    total = slots["embed"].nbytes + model.layers * slots["block"].nbytes + slots["head"].nbytes
    assert packed_bytes(model) <= total <= packed_bytes(model) + padding


def test_inputs_and_outputs_of_a_run(tmp_path: Path) -> None:
    manifest = make_random_bundle(tmp_path, replace(MODELS["wan-tiny"], in_channels=36))
    length, d = 1000, 256
    exact = 2 * 2 * length * d + 4 * length * (2 * 64 + 4 * 64 + 80) + 512 * (2 * d + 2 * 4096) + 4 * (7 * d + 256 + 3)
    found = run_layout(manifest.stages, {"L": length}).nbytes
    assert exact <= found <= exact + 256 * 17


def test_the_engines_figure_is_scaled_to_the_size(tmp_path: Path) -> None:
    import msgspec

    manifest = make_random_bundle(tmp_path, MODELS["wan-tiny"])
    with pytest.raises(UserError, match="no figure"):
        planned_bytes(manifest, "block", {"L": 200})
    stages = tuple(msgspec.structs.replace(stage, activation_bytes=40_960_000) for stage in manifest.stages)
    manifest = msgspec.structs.replace(manifest, stages=stages)
    assert planned_bytes(manifest, "block", {"L": 4096}) == 40_960_000
    assert planned_bytes(manifest, "block", {"L": 200}) == 2_000_000 + 16 * 512 * 256


def test_the_peak_of_torch_is_followed() -> None:
    x = torch.empty(1000, 1000, device="meta")
    with torch.no_grad(), PeakBytes([x], None) as followed:
        a = x + 1
        b = a * 2
        del a
        c = b.bfloat16()
        del b, c
        x[:10] + x[:10]
    assert followed.peak == 2 * (7813 * 512 + 2**20)  # 4,000,000 bytes are 7812.5 times 512
    assert followed.live == 0


def test_what_the_block_allocates_grows_with_l(tmp_path: Path) -> None:
    manifest = make_random_bundle(tmp_path, MODELS["wan-tiny"])
    runner = TorchRunner(manifest, torch.device("cpu"))
    small, large = (runner.activation_bytes("block", {"L": n}) for n in (1024, 4096))
    assert 2.5 < large / small < 6  # the oracle's gathered keys grow faster than L
    # x after attention, the FFN's hidden tensor and what comes of it at least: bf16 and int8 of [L, D] and [L, F].
    assert large >= math.prod((4096, 256 * 2 + 512))
