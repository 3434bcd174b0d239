"""Weights reach every stage run in time and stay until it is over, under every budget, whatever the queues do."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.models import MODELS, ModelSpec
from exporter.networks.dit.weights import stage_weights
from plugins.errors import UserError
from runtime.pipeline import Pipeline
from runtime.weights.file import WeightsFile
from runtime.weights.memory_plan import MemoryPlan, StageBytes, plan_memory, spread
from runtime.weights.streaming import Copy, Slot, schedule, slots_of
from tests.support.lazy_device import POLICIES, LazyDevice, Policy, digest, telling_kind
from tests.support.random_bundle import make_random_bundle

ONE = replace(MODELS["wan-tiny"], name="tiny-6", layers=6)
TWO = replace(ONE, name="tiny-6-experts", experts=("high-noise", "low-noise"), boundary=0.9, sigma_max=200.0)
TEXT = np.ones((3, 4096), np.float32)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for model in (ONE, TWO):
        make_random_bundle(folder / model.name, model)
    return {model.name: folder / model.name for model in (ONE, TWO)}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is then several pieces, and the ring of buffers turns over within it."""
    monkeypatch.setattr("runtime.weights.upload.CHUNK", 200_000)
    monkeypatch.setattr("runtime.weights.upload.BUFFERS", 3)


def expected(folder: Path, model: ModelSpec, experts: list[str]) -> list[tuple[str, str]]:
    """What each stage run of these steps must find: read tensor by tensor from the files."""
    units: list[tuple[str, str]] = []
    for expert in experts:
        file = WeightsFile(folder / f"weights-{expert}.safetensors")
        places = [("embed", ""), *(("block", f"blocks.{n}.") for n in range(model.layers)), ("head", "")]
        for stage, prefix in places:
            names = stage_weights(model, stage)  # type: ignore[arg-type]
            arrays = {name: file.read(prefix + name).tobytes() for name in names}
            units.append((stage, digest(arrays)))
        file.close()
    return units


def full(folder: Path, kind: Any) -> MemoryPlan:
    with Pipeline.load(folder, backend=kind) as pipe:
        return pipe.placement


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("resident", [6, 3, 2, 1, 0])
def test_every_run_finds_its_own_weights(
    bundles: dict[str, Path], policy: Policy, resident: int, small_chunks: None
) -> None:
    folder = bundles[ONE.name]
    whole = full(folder, telling_kind(LazyDevice(policy)))
    budget = whole.peak - (6 - resident - min(2, 6 - resident)) * whole.sizes.block
    device = LazyDevice(policy)
    with Pipeline.load(folder, backend=telling_kind(device), vram=budget) as pipe:
        assert len(pipe.placement.resident) == resident
        for _ in range(2):
            pipe(TEXT, steps=3)
        assert pipe.placement.peak <= budget
        # Overhead is not allocated here.
        assert device.peak["device"] == pipe.placement.peak - 1000
    assert device.log == [*2 * expected(folder, ONE, ["model"] * 3), "closed"]
    assert device.live == {"device": 0, "pinned": 0}
    assert device.peak["pinned"] == 3 * 200_000
    assert device.closed


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["both resident", "one set of slots", "streamed"])
def test_the_switch_to_the_second_expert(
    bundles: dict[str, Path], policy: Policy, way: str, small_chunks: None
) -> None:
    folder = bundles[TWO.name]
    whole = full(folder, telling_kind(LazyDevice(policy)))
    assert whole.all_experts
    one_set = replace(whole, all_experts=False)
    budget = {"both resident": whole.peak, "one set of slots": one_set.peak, "streamed": one_set.smallest}[way]
    device = LazyDevice(policy)
    with Pipeline.load(folder, backend=telling_kind(device), vram=budget) as pipe:
        assert pipe.placement.all_experts == (way == "both resident")
        assert pipe.placement.streamed == (6 if way == "streamed" else 0)
        for _ in range(2):  # the second run starts with the second expert's weights in the slots
            pipe(TEXT, steps=4)
        per_expert = whole.weights // 2
        if way == "both resident":
            assert pipe.copied_bytes == 2 * per_expert
        elif way == "one set of slots":
            assert pipe.copied_bytes == 4 * per_expert
    steps = ["high-noise", "high-noise", "low-noise", "low-noise"]  # t = 0.995, 0.934, 0.853, 0.609
    assert device.log[:-1] == 2 * expected(folder, TWO, steps)


@pytest.mark.parametrize(
    ("way", "waits"),
    [
        ("both resident", [[0, 0, 8, 0], [0, 0, 0, 0]]),
        ("one set of slots", [[0, 0, 8, 0], [8, 0, 8, 0]]),
        ("streamed", [[4, 6, 8, 6], [8, 6, 8, 6]]),  # six layers in every step; embed and head at the switch
    ],
)
def test_waiting_for_weights_is_counted_step_by_step(bundles: dict[str, Path], way: str, waits: Any) -> None:
    """The device below says one second of every wait."""
    whole = full(bundles[TWO.name], telling_kind(LazyDevice("copies first")))
    one_set = replace(whole, all_experts=False)
    budget = {"both resident": whole.peak, "one set of slots": one_set.peak, "streamed": one_set.smallest}[way]
    device = LazyDevice("nothing until it must")
    with Pipeline.load(bundles[TWO.name], backend=telling_kind(device), vram=budget) as pipe:
        for expected_waits in waits:
            seen: list[float] = []
            pipe(TEXT, steps=4, on_step=lambda *_, seen=seen: seen.append(pipe.take_waited_seconds()))
            assert seen == expected_waits


def test_few_steps_do_not_load_the_second_expert(bundles: dict[str, Path], tmp_path: Path) -> None:
    from tests.support.progress import SilentProgress

    report, device = SilentProgress(), LazyDevice("compute first")
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in bundles[TWO.name].iterdir():
        (folder / file.name).hardlink_to(file)
    (folder / "weights-low-noise.safetensors").unlink()  # it is not even opened
    with Pipeline.load(folder, backend=telling_kind(device), steps=2, report=report) as pipe:
        pipe(TEXT, steps=2)
        assert pipe.placement.experts == ("high-noise",)
        assert "These steps never reach the low-noise expert: it is not loaded." in report.notes
        assert device.log == expected(bundles[TWO.name], TWO, ["high-noise"] * 2)
        with pytest.raises(UserError, match="low-noise"):
            pipe(TEXT, steps=3)
        data = (bundles[TWO.name] / "weights-low-noise.safetensors").read_bytes()
        (folder / "weights-low-noise.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(UserError, match="sha256"):
            pipe(TEXT, steps=3)
        (folder / "weights-low-noise.safetensors").unlink()
        (folder / "weights-low-noise.safetensors").hardlink_to(bundles[TWO.name] / "weights-low-noise.safetensors")
        pipe(TEXT, steps=3)
        assert list(pipe.placement.experts) == ["high-noise", "low-noise"]
    assert device.live == {"device": 0, "pinned": 0}


def test_a_larger_size_makes_room(bundles: dict[str, Path]) -> None:
    folder = bundles[ONE.name]
    device = LazyDevice("compute first")
    whole = full(folder, telling_kind(LazyDevice("compute first")))
    with Pipeline.load(folder, backend=telling_kind(device), vram=whole.peak) as pipe:
        assert pipe.placement.streamed == 0
        pipe(TEXT, steps=1, frames=21)
        assert pipe.placement.streamed > 0
        assert device.peak["device"] <= whole.peak
        pipe(TEXT, steps=1)  # what lies there serves the smaller size too
        assert pipe.placement.streamed > 0
        with pytest.raises(UserError, match="at least"):
            pipe(TEXT, steps=1, frames=81, size=(256, 160))
    runs = device.log[:-1]
    assert runs == 2 * expected(folder, ONE, ["model"])


def plan_of(layers: int, resident: int, *, experts: tuple[str, ...] = ("model",), both: bool = False) -> MemoryPlan:
    sizes = StageBytes(embed=1, block=1, head=1, io=1, activations={"block": 1}, overhead=0)
    return MemoryPlan(sizes, layers, experts, spread(resident, layers), both, None, 1)


def test_copies_are_in_the_order_of_need_and_wait_for_their_slot() -> None:
    plan = plan_of(4, 1)
    assert plan.resident == {1}
    uses = [("model", unit) for _ in range(2) for unit in range(6)]
    made = schedule(uses, plan, {})
    ring: list[Slot] = [("ring", "", 0), ("ring", "", 1)]
    assert made.copies == (
        Copy(("model", 0), ("own", "", 0), 0, None),
        Copy(("model", 1), ("own", "", 1), 1, None),
        Copy(("model", 2), ring[0], 2, None),
        Copy(("model", 3), ring[1], 3, None),
        Copy(("model", 4), ring[0], 4, 2),
        Copy(("model", 5), ("own", "", 5), 5, None),
        Copy(("model", 2), ring[1], 8, 3),
        Copy(("model", 3), ring[0], 9, 4),
        Copy(("model", 4), ring[1], 10, 8),
    )
    assert set(made.slots) == set(slots_of(plan, uses))


def test_resident_weights_are_copied_once_and_an_expert_follows_in_the_slot_its_unit_left() -> None:
    plan = plan_of(2, 2, experts=("a", "b"))
    held = {("own", "", unit): ("a", unit) for unit in range(4)}
    uses = [("a", unit) for unit in range(4)] + [("b", unit) for unit in range(4)]
    made = schedule(uses, plan, held)  # type: ignore[arg-type]
    assert made.copies == tuple(Copy(("b", unit), ("own", "", unit), 4 + unit, unit) for unit in range(4))
    both = plan_of(2, 2, experts=("a", "b"), both=True)
    first = {("own", "a", unit): ("a", unit) for unit in range(4)}
    copies = schedule(uses, both, first).copies  # type: ignore[arg-type]
    assert copies == tuple(Copy(("b", unit), ("own", "b", unit), 4 + unit, None) for unit in range(4))


def test_a_file_that_ends_too_early_is_told_and_leaves_the_pipeline_usable(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    make_random_bundle(folder, ONE)
    whole = full(folder, telling_kind(LazyDevice("compute first")))
    device, threads = LazyDevice("compute first"), threading.active_count()
    with Pipeline.load(folder, backend=telling_kind(device), vram=whole.smallest) as pipe:
        path = folder / "weights-model.safetensors"
        data = path.read_bytes()
        path.open("r+b").truncate(len(data) // 2)
        with pytest.raises(UserError, match="ends too early"):
            pipe(TEXT, steps=1)
        path.open("r+b").write(data)
        device.log.clear()
        pipe(TEXT, steps=1)
        assert device.log == expected(folder, ONE, ["model"])
        assert threading.active_count() < threads + 30
    assert device.live == {"device": 0, "pinned": 0}


def test_smallest_budget_is_told_and_works(bundles: dict[str, Path]) -> None:
    kind = telling_kind(LazyDevice("copies first"))
    smallest = full(bundles[ONE.name], kind).smallest
    with pytest.raises(UserError, match="too little") as told:
        Pipeline.load(bundles[ONE.name], backend=kind, vram=smallest - 1)
    words = str(told.value).split("at least ")[1].split()[0]
    with Pipeline.load(bundles[ONE.name], backend=kind, vram=words) as pipe:
        assert pipe.placement.streamed == 6
    with Pipeline.load(bundles[ONE.name], backend=kind, vram=smallest) as pipe:
        assert pipe.placement == plan_memory(pipe.placement.sizes, 6, ("model",), 200, smallest)
