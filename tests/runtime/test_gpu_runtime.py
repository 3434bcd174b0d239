"""The runtime on a CUDA device, with random weights made on the spot: accuracy of every step, budgets, memory, speed.

Figures are printed as one JSON at the end, and written to the file that TURBOTRT_FIGURES names. The large model takes
15 GB of disk and 15 GB of device memory. Run alone: pytest -m gpu -s tests/runtime/test_gpu_runtime.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from exporter.models import MODELS, ModelSpec
from exporter.torch_backend.backend import TORCH
from exporter.torch_backend.runner import CUBLAS_BYTES
from plugins.expr import evaluate
from plugins.plan import shape_of
from plugins.torch_op import device_sm
from runtime import Pipeline
from runtime.inputs import text_bits
from runtime.numerics import to_tokens
from runtime.sampler import Step
from runtime.weights.file import WeightsFile
from tests.support.progress import SilentProgress
from tests.support.random_bundle import make_random_bundle
from tests.support.transfer_rates import disk_rate, pcie_rate

pytestmark = pytest.mark.gpu

SMALL, LARGE = MODELS["wan2.1-1.3b-480p"], MODELS["wan2.1-14b-720p"]
PAIR = replace(LARGE, name="14b-720p-pair", experts=("high-noise", "low-noise"), boundary=0.9, sigma_max=200.0)
TEXT = np.random.default_rng(0).standard_normal((100, 4096), dtype=np.float32)
STEP_BOUND = 2e-2
STREAM_BUDGET = "10GB"


@pytest.fixture(scope="module", autouse=True)
def _cuda(figures: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    figures["device"] = torch.cuda.get_device_name()
    figures["torch"] = torch.__version__


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make_random_bundle(folder, SMALL, gpu=("h200", device_sm()), hashed=False)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    make_random_bundle(folder, LARGE, gpu=("h200", device_sm()), hashed=False)
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def pair(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts of the same bytes, which the runtime cannot know: links to the one file."""
    import msgspec

    from runtime.bundle import load_manifest, write_manifest

    folder = tmp_path_factory.mktemp("pair")
    one = load_manifest(large)
    (weights,) = one.weights.values()
    files = dict(one.files)
    for expert in PAIR.experts:
        (folder / f"{expert}.safetensors").symlink_to(large / weights)
        files[f"{expert}.safetensors"] = files[weights]
    model = msgspec.structs.replace(one.model, experts=PAIR.experts)
    sampler = msgspec.structs.replace(one.sampler, boundary=PAIR.boundary, sigma_max=PAIR.sigma_max)
    named = {expert: f"{expert}.safetensors" for expert in PAIR.experts}
    write_manifest(folder, msgspec.structs.replace(one, model=model, sampler=sampler, files=files, weights=named))
    return folder


@contextmanager
def loaded(folder: Path, **options: Any) -> Iterator[Pipeline]:
    with Pipeline.load(folder, backend=TORCH, verify="never", **options) as pipe:
        yield pipe


class StepClock:
    """Wall seconds of every step but the first, whose start is not seen, and the latents after each."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.latents: list[Any] = []

    def __call__(self, step: Step, latents: Any) -> None:
        self.at.append(time.perf_counter())
        self.latents.append(latents)

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.at, self.at[1:], strict=False)]


@contextmanager
def watched_selection(kept: list[Any]) -> Iterator[None]:
    """Keep the table of kept blocks that every plan with a ``lut`` leaves in its workspace, in order."""
    from plugins.executor import PlanExecutor

    original = PlanExecutor.run

    def run(self: Any, shapes: Any, inputs: Any, outputs: Any, workspace: int, stream: int) -> None:
        original(self, shapes, inputs, outputs, workspace, stream)
        names = [spec.name for spec in self.plan.buffers]
        if "lut" not in names:
            return
        slot, symbols = names.index("lut"), self.plan.bind(shapes)
        offset = sum(evaluate(size, symbols) for size in self.plan.workspace[:slot])
        shape = shape_of(self.plan.buffers[slot], symbols)
        data = (workspace + offset, False)
        interface = {"shape": (int(np.prod(shape)) * 4,), "typestr": "|u1", "data": data, "version": 3}
        raw = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
        kept.append(raw.clone().view(torch.int32).view(shape))

    PlanExecutor.run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        PlanExecutor.run = original  # type: ignore[method-assign]


def loader(folder: Path) -> Any:
    """The tensors of the folder's one weights file, on CUDA, by name; each is read once."""
    (path,) = folder.glob("weights-*.safetensors")
    file = WeightsFile(path)

    @cache
    def load(name: str) -> Any:
        dtype = file.tensors[name].dtype
        tensor = torch.from_numpy(file.read(name)).cuda()
        return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor

    return load


def step_errors(folder: Path, model: ModelSpec, steps: tuple[int, ...]) -> dict[str, Any]:
    """Relative L2 of latents and of what v adds to them after chosen steps, each from the pipeline's own latents."""
    from tests.support.plain_packed import velocity

    shape = model.latent_shape()
    kept: list[Any] = []
    clock = StepClock()
    seen: list[Step] = []

    def both(step: Step, latents: Any) -> None:
        seen.append(step)
        clock(step, latents)

    with loaded(folder) as pipe, watched_selection(kept):
        pipe(TEXT, seed=1, on_step=both)
        text = torch.from_numpy(text_bits(TEXT, pipe.manifest.model).view(np.int16)).view(torch.bfloat16).cuda()
    random = np.random.Generator(np.random.Philox(1))
    noise = [to_tokens(random.standard_normal((16, *shape), dtype=np.float32)) for _ in seen]
    states = [noise[0] * np.float32(seen[0].t), *map(to_tokens, clock.latents)]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    latents, velocities = {}, {}
    load = loader(folder)
    try:
        for n in steps:
            step, tokens = seen[n], torch.from_numpy(states[n]).cuda()
            tables = kept[n * model.layers : (n + 1) * model.layers]
            v = velocity(load, tokens, step.t, text, shape, tables)
            fresh = torch.from_numpy(noise[n + 1] if step.update.c else noise[0]).cuda()
            base = step.update.a * tokens + step.update.c * fresh
            want, got = base + step.update.b * v, torch.from_numpy(states[n + 1]).cuda()
            latents[n + 1] = float((got - want).norm() / want.norm())
            velocities[n + 1] = float(((got - base) / step.update.b - v).norm() / v.norm())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        torch.cuda.empty_cache()
    return {"latents": latents, "velocity": velocities}


def test_small_steps_agree_with_the_plain_module(small: Path, figures: dict[str, Any]) -> None:
    figures["1.3b step errors"] = errors = step_errors(small, SMALL, (0, 1, 2, 3))
    assert max(errors["latents"].values()) <= STEP_BOUND


def test_large_step_agrees_with_the_plain_module(large: Path, figures: dict[str, Any]) -> None:
    """Every step; v weighs most in the last."""
    figures["14b step errors"] = errors = step_errors(large, LARGE, (0, 1, 2, 3))
    assert max(errors["latents"].values()) <= STEP_BOUND


def peak_of(folder: Path, options: dict[str, Any]) -> tuple[Any, dict[str, Any], StepClock]:
    """A generation's latents, its memory against its plan, and the times of its steps; two generations, the last timed.

    Peaks are over what was allocated before: by torch's allocator, and by its reserved segments.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    start, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    clock = StepClock()
    call = {name: value for name, value in options.items() if name in ("steps", "size", "frames")}
    with loaded(folder, **options) as pipe:
        pipe(TEXT, **(call | {"steps": 1}))
        latents = pipe(TEXT, seed=2, on_step=clock, **call)
        plan = pipe.placement
    used = {
        "plan": plan.peak,
        "allocated": torch.cuda.max_memory_allocated() - start,
        "reserved": torch.cuda.max_memory_reserved() - reserved,
        "streamed_layers": plan.streamed,
        "step_seconds": clock.seconds,
    }
    assert torch.cuda.memory_allocated() <= start + CUBLAS_BYTES  # which torch keeps
    return latents, used, clock


@pytest.mark.parametrize("name", ["1.3b", "14b"])
def test_every_budget_gives_the_same_latents_within_its_plan(
    request: pytest.FixtureRequest, figures: dict[str, Any], name: str
) -> None:
    folder = request.getfixturevalue("small" if name == "1.3b" else "large")
    steps = 4 if name == "1.3b" else 3
    want, whole, clock = peak_of(folder, {"steps": steps})
    with loaded(folder, steps=1) as pipe:
        plan = pipe.placement
    smallest = plan.smallest
    half = (smallest + plan.peak) // 2
    budgets = [half, smallest] if name == "1.3b" else [STREAM_BUDGET, smallest]
    rows = figures[f"{name} budgets"] = {"resident": whole}
    for budget in budgets:
        got, rows[str(budget)], other = peak_of(folder, {"steps": steps, "vram": budget})
        assert np.array_equal(got, want), f"{budget}: other latents"
        for mine, theirs in zip(other.latents, clock.latents, strict=True):
            assert np.array_equal(mine, theirs)
    for budget, row in rows.items():
        assert row["allocated"] <= row["plan"], budget
        # Not so loose that a plan says nothing.
        assert row["plan"] <= 1.3 * row["allocated"], budget
    if name == "14b":
        slower = mean(rows[STREAM_BUDGET]["step_seconds"]) / mean(whole["step_seconds"])
        figures["14b streaming at 10 GB, times resident"] = slower
        assert rows[STREAM_BUDGET]["streamed_layers"] > 0
        assert slower <= 1.05


def test_the_switch_of_experts_is_hidden(pair: Path, figures: dict[str, Any]) -> None:
    with loaded(pair, steps=1) as pipe:
        one_set = pipe.placement.peak
    clock = StepClock()
    with loaded(pair, vram=one_set + (64 << 20)) as pipe:
        assert not pipe.placement.all_experts
        assert pipe.placement.streamed == 0
        pipe(TEXT, steps=1)
        copied = pipe.copied_bytes
        pipe(TEXT, on_step=clock)
        assert pipe.copied_bytes - copied == pipe.placement.weights  # the second expert, once
    second, switched, last = clock.seconds
    figures["expert switch"] = {"steps": [second, switched, last], "times": switched / ((second + last) / 2)}
    assert switched <= 1.02 * (second + last) / 2


class LoadClock(SilentProgress):
    """Seconds of each stage of a load."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str) -> Iterator[Any]:
        started = time.perf_counter()
        with super().stage(title) as update:
            yield update
        self.seconds[title] = time.perf_counter() - started


def test_loading_is_as_fast_as_disk_or_pcie(large: Path, figures: dict[str, Any]) -> None:
    (path,) = large.glob("weights-*.safetensors")
    disk, pcie = disk_rate(path), pcie_rate()
    torch.cuda.empty_cache()
    report = LoadClock()
    with loaded(large, report=report, steps=1) as pipe:
        rate = pipe.copied_bytes / report.seconds[f"load {path.name}"]
    figures["load GB/s"] = {"pipeline": rate / 1e9, "disk": disk / 1e9, "pcie": pcie / 1e9}
    assert rate >= 0.6 * min(disk, pcie)


def resident_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise ValueError("no RssAnon in /proc/self/status")


def test_twenty_generations_leave_memory_flat(small: Path, figures: dict[str, Any]) -> None:
    marks = []
    with loaded(small) as pipe:
        first = None
        for seed in [0, 0, *range(18)]:
            out = pipe(TEXT, seed=seed, steps=2)
            first = out if first is None else first
            if seed == 0:
                assert np.array_equal(out, first)
            marks.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), resident_memory()))
    figures["20 generations"] = {
        "allocated": [m[0] for m in marks[::19]],
        "reserved": [m[1] for m in marks[::19]],
        "host": [m[2] for m in marks[::19]],
    }
    assert len({allocated for allocated, _, _ in marks}) == 1
    assert marks[-1][1] <= marks[1][1]
    assert marks[-1][2] <= marks[1][2] + (64 << 20)


def test_a_stage_table_of_the_small_model(small: Path, figures: dict[str, Any]) -> None:
    from runtime.bench import bench

    with loaded(small) as pipe:
        figures["1.3b bench"] = found = bench(pipe, repeats=2)
    blocks = next(row for row in found["stages"] if row["stage"] == "block")
    assert blocks["runs"] == 4 * SMALL.layers
    total = sum(row["seconds"] for row in found["stages"])
    assert 0.5 * min(found["generation_seconds"]) <= total <= 1.01 * max(found["generation_seconds"])


def test_the_driver_device_under_engines_that_stand_in(tmp_path: Path, figures: dict[str, Any]) -> None:
    """The TensorRT backend whole, on real device memory, streams and events, but for TensorRT's own runtime."""
    pytest.importorskip("tensorrt_rtx")
    from runtime.backends.cuda_device import CudaDevice, compute_capability
    from runtime.backends.tensorrt import TENSORRT, TensorrtRunner
    from tests.support.stand_in_tensorrt import StandIn, add_engines, cuda_view

    assert compute_capability() == device_sm()
    model = replace(MODELS["wan-tiny"], name="tiny-6", layers=6)
    add_engines(tmp_path, make_random_bundle(tmp_path, model, gpu=("h200", device_sm())))
    with loaded(tmp_path) as pipe:
        want = pipe(TEXT, seed=3)

    def open_(folder: Path, manifest: Any, report: Any) -> TensorrtRunner:
        device = CudaDevice()

        def enqueue(stream: int, work: Any) -> None:
            assert stream == device.stream
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                work()

        with device.current():
            return TensorrtRunner(StandIn(manifest, enqueue, cuda_view), folder, manifest, device, report)

    kind = replace(TENSORRT, check=TORCH.check, open=open_)
    for budget in ("resident", "smallest"):
        with Pipeline.load(tmp_path, backend=kind) as pipe:
            vram = pipe.placement.peak if budget == "resident" else pipe.placement.smallest
        with Pipeline.load(tmp_path, backend=kind, vram=vram) as pipe:
            times: list[Any] = []
            for _ in range(3):
                assert np.array_equal(pipe(TEXT, seed=3, times=times), want), budget
            assert all(0 < unit.seconds < 10 for unit in times)
            assert pipe.placement.streamed == (0 if budget == "resident" else 6)
    figures["driver device"] = "same latents as the torch backend, resident and streamed"
