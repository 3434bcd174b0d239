"""What goes wrong in a run is named, and the pipeline is whole afterwards: NaN, interruptions, errors of the caller."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime import Pipeline
from runtime.sampler import NonFiniteError
from runtime.weights.file import WeightsFile
from tests.support.lazy_device import LazyDevice, TellingRunner, telling_kind
from tests.support.pressed import lines_of, pressed_at
from tests.support.random_bundle import make_random_bundle

MODEL = replace(MODELS["wan-tiny"], name="tiny-4", layers=4)
OPTIONS: dict[str, Any] = {"size": (48, 32), "frames": 9, "steps": 2}
TEXT = np.random.default_rng(0).standard_normal((5, 4096), dtype=np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_random_bundle(folder, MODEL)
    return folder


def spoilt(whole: Path, tmp_path: Path, name: str, bits: bytes) -> Path:
    """A copy of the bundle with some bytes in the middle of one tensor replaced."""
    folder = tmp_path / "spoilt"
    shutil.copytree(whole, folder)
    path = folder / "weights-model.safetensors"
    file = WeightsFile(path)
    place = file.tensors[name]
    file.close()
    with path.open("r+b") as out:
        out.seek(place.start + place.nbytes // 2 // 4 * 4)
        out.write(bits)
    return folder


FP32_NAN, FP32_INF, BF16_NAN = b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xc0\x7f"


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("weight", "bits", "stage", "block"),
    [
        ("blocks.2.ffn.0.scale", FP32_NAN, "block", 2),
        ("blocks.0.self_attn.q.scale", FP32_INF, "block", 0),
        ("blocks.3.modulation", FP32_NAN, "block", 3),
        ("patch_embedding.weight", BF16_NAN, "embed", None),
        ("time_embedding.2.weight", BF16_NAN, "embed", None),
        ("head.head.weight", FP32_NAN, "head", None),
    ],
)
def test_a_weight_that_is_nan_is_named(
    whole: Path, tmp_path: Path, weight: str, bits: bytes, stage: str, block: int | None, debug: bool
) -> None:
    file = WeightsFile(whole / "weights-model.safetensors")
    if weight not in file.tensors:  # the packing of q, k and v may change
        weight = next(name for name in file.tensors if name.startswith("blocks.0.self_attn.q") and "scale" in name)
    file.close()
    folder = spoilt(whole, tmp_path, weight, bits)
    with Pipeline.load(folder, backend=TORCH, verify="never", **OPTIONS) as pipe:
        with pytest.raises(NonFiniteError) as told:
            pipe(TEXT, debug=debug, **OPTIONS)
        error = told.value
        assert (error.step, error.stage, error.block, error.weight) == (1, stage, block, weight)
        words = str(error)
        assert "step 1" in words
        assert f"stage {stage}" in words
        assert block is None or f"block {block}" in words
        assert weight in words


class Overflowing:
    """The torch backend, one of whose blocks gives infinity in one step, with weights that are all finite."""

    def __init__(self, stage: str, run: int) -> None:
        self.stage, self.run, self.seen = stage, run, 0

    def open(self, *args: Any) -> Any:
        backend = TORCH.open(*args)
        original = backend.run

        def run(stage: str, inputs: Any, outputs: Any) -> None:
            original(stage, inputs, outputs)
            if stage == self.stage:
                if self.seen == self.run:
                    for tensor in outputs.values():
                        memory: Any = tensor.memory
                        start = tensor.place.offset
                        memory.tensor[start : start + 4] = torch.tensor([128, 127, 128, 127])  # infinity in bf16
                self.seen += 1

        backend.run = run  # type: ignore[method-assign]
        return backend


@pytest.mark.parametrize(
    ("stage", "run", "debug", "step", "block"),
    [
        ("block", 6, True, 2, 2),
        ("block", 6, False, 2, None),
        ("embed", 1, False, 2, None),
        ("head", 0, False, 1, None),
        ("embed", 0, True, 1, None),
        ("head", 1, True, 2, None),
    ],
)
def test_what_overflows_is_found_by_stage_and_by_block_on_request(
    whole: Path, stage: str, run: int, debug: bool, step: int, block: int | None
) -> None:
    kind = replace(TORCH, open=Overflowing(stage, run).open)
    with Pipeline.load(whole, backend=kind, **OPTIONS) as pipe:
        with pytest.raises(NonFiniteError) as told:
            pipe(TEXT, debug=debug, **OPTIONS)
        error = told.value
        assert (error.step, error.stage, error.block, error.weight) == (step, stage, block, None)
        assert ("--debug" in str(error)) == (stage == "block" and not debug)
        assert np.isfinite(pipe(TEXT, debug=debug, **OPTIONS)).all()  # the next call is well


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("the caller's own")])
@pytest.mark.parametrize("budget", ["resident", "streamed"])
def test_an_interrupted_run_gives_everything_back(whole: Path, error: Any, budget: str) -> None:
    device = LazyDevice("nothing until it must")
    with Pipeline.load(whole, backend=telling_kind(LazyDevice("copies first")), **OPTIONS) as pipe:
        plan = pipe.placement
    threads = threading.active_count()
    vram = plan.peak if budget == "resident" else plan.smallest
    with Pipeline.load(whole, backend=telling_kind(device), vram=vram, **OPTIONS) as pipe:
        weights = device.live["device"]

        def on_step(step: Any, latents: Any) -> None:
            raise error

        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            pipe(TEXT, on_step=on_step, **OPTIONS)
        assert device.live["device"] == weights == pipe.placement.weights
        assert not any(device.queues.values())
        device.log.clear()
        pipe(TEXT, **OPTIONS)
        again = list(device.log)
        device.log.clear()
        pipe(TEXT, **OPTIONS)
        assert device.log == again
    assert device.live == {"device": 0, "pinned": 0}
    assert threading.active_count() <= threads


def test_an_interruption_while_weights_are_awaited(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives in the middle of a step: no thread is left behind, no memory either."""
    device = LazyDevice("compute first")
    kind = telling_kind(device)
    with Pipeline.load(whole, backend=kind, **OPTIONS) as pipe:
        smallest = pipe.placement.smallest
    original, count = TellingRunner.run, 0

    def run(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(TellingRunner, "run", run)
    with Pipeline.load(whole, backend=kind, vram=smallest, **OPTIONS) as pipe, pytest.raises(KeyboardInterrupt):
        pipe(TEXT, **OPTIONS)
    assert device.live == {"device": 0, "pinned": 0}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("turbotrt")]


def test_a_load_that_fails_leaves_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = LazyDevice("compute first")

    def broken(self: Any, *args: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("runtime.weights.file.WeightsFile.fill", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        Pipeline.load(whole, backend=telling_kind(device), **OPTIONS)
    assert device.live == {"device": 0, "pinned": 0}
    assert device.closed


def test_an_interrupted_load_leaves_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the weights are on their way: the copies under way end before their memory is freed."""
    device = LazyDevice("copies first")
    original, slowly = WeightsFile.fill, threading.Event()

    def fill(self: Any, *args: Any) -> None:
        slowly.wait(0.05)
        original(self, *args)

    def interrupt(self: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(WeightsFile, "fill", fill)
    monkeypatch.setattr("runtime.weights.streaming.WeightStream.finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Pipeline.load(whole, backend=telling_kind(device), **OPTIONS)
    assert device.live == {"device": 0, "pinned": 0}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("turbotrt")]


def test_twenty_runs_leave_as_much_memory_as_one(whole: Path) -> None:
    device = LazyDevice("copies first")
    with Pipeline.load(whole, backend=telling_kind(device), **OPTIONS) as pipe:
        pipe(TEXT, **OPTIONS)
        live, peak = dict(device.live), dict(device.peak)
        for seed in range(20):
            pipe(TEXT, seed=seed, **OPTIONS)
        assert device.live == live
        assert device.peak == peak


def test_ctrl_c_anywhere_gives_everything_back(whole: Path) -> None:
    """Before some of the lines that a load, a streamed call and a close run: every thirteenth, and the last ones."""
    with Pipeline.load(whole, backend=telling_kind(LazyDevice("copies first")), **OPTIONS) as pipe:
        smallest = pipe.placement.smallest
    devices: list[LazyDevice] = []

    def work() -> None:
        devices.append(LazyDevice("compute first"))
        with Pipeline.load(whole, backend=telling_kind(devices[-1]), vram=smallest, verify="never", **OPTIONS) as pipe:
            pipe(TEXT, **OPTIONS)

    gc.freeze()
    total = lines_of(work)
    for line in (*range(1, total, total // 60), *range(total - 40, total - 5, 3)):
        pressed_at(line, work)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("turbotrt-weights")], line
        assert devices[-1].live == {"device": 0, "pinned": 0}, line
    gc.unfreeze()


def test_a_pipeline_that_is_dropped_closes_itself(whole: Path) -> None:
    device, before = LazyDevice("copies first"), set(os.listdir("/proc/self/fd"))
    pipe = Pipeline.load(whole, backend=telling_kind(device), **OPTIONS)
    pipe(TEXT, **OPTIONS)
    assert device.live["device"] > 0
    del pipe
    gc.collect()
    assert device.live == {"device": 0, "pinned": 0}
    assert device.closed
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_closed_pipeline_has_no_placement(whole: Path) -> None:
    with Pipeline.load(whole, backend=telling_kind(LazyDevice("copies first")), **OPTIONS) as pipe:
        pass
    for ask in (lambda: pipe.placement, pipe.plan, lambda: pipe(TEXT)):
        with pytest.raises(UserError, match="This pipeline is closed"):
            ask()
