"""VideoPipeline: the same bytes whatever stays, cancelled or killed at any point, and files that change meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("PIL.Image")

from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from exporter.torch_backend.device import TorchDevice
from plugins.errors import UserError
from runtime import file_checks
from runtime.media.files.kinds import sink_for
from runtime.media.parts.plan import DECODE, DIT, TEXT
from runtime.media.text.embeds_cache import EmbedsCache
from runtime.media.vae.decoder import Vae
from runtime.media.video_pipeline import Cancelled, Request, Video, VideoPipeline
from runtime.media.write import written
from runtime.pipeline import Pipeline
from runtime.report import Silent
from tests.support.media_bundle import TEXT_NAME, VAE_NAME, add_media
from tests.support.random_bundle import make_random_bundle

SMALL: dict[str, Any] = {"size": (64, 64), "frames": 1, "steps": 1}
PROMPTS = ("a cat", "two dogs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resident") / "bundle"
    add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]))
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt is encoded each time."""
    monkeypatch.setattr(EmbedsCache, "get", lambda self, prompt: None)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, Video]:
    """Each prompt's video by the parts one after the other, each loaded for itself: nothing is kept, nothing ahead."""
    made: dict[str, Video] = {}
    for prompt in PROMPTS:
        with VideoPipeline.load(folder, backend=TORCH, keep=False) as one:
            (embeds,) = one.embeddings([prompt])
        with Pipeline.load(folder, backend=TORCH, **SMALL) as pipe:
            latents = pipe(embeds, **SMALL)
        with VideoPipeline.load(folder, backend=TORCH) as one:
            made[prompt] = Video(Request(prompt), latents, one.decode(latents))
    return made


class Counted:
    """Bytes of device memory that are allocated, and at most were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.live = self.most = 0
        real = TorchDevice.allocate

        def allocate(device: TorchDevice, nbytes: int) -> Any:
            memory = real(device, nbytes)
            self.live += nbytes
            self.most = max(self.most, self.live)
            free = memory.free

            def freed() -> None:
                if memory.nbytes:
                    self.live -= memory.nbytes
                    memory.nbytes = 0
                free()

            memory.free = freed  # type: ignore[method-assign]
            return memory

        monkeypatch.setattr(TorchDevice, "allocate", allocate)


def same(got: Video, want: Video) -> bool:
    return np.array_equal(got.latents, want.latents) and np.array_equal(np.asarray(got.frames), np.asarray(want.frames))


def three_chunks(self: Vae, latents: Any) -> Iterator[Any]:
    """In place of the VAE's own frames, which take a second."""
    for _ in range(3):
        yield np.zeros((1, 64, 64, 3), np.uint8)


def budgets(folder: Path) -> list[int]:
    """Of device memory: everything stays, some parts do, none does, layers stream."""
    with VideoPipeline.load(folder, backend=TORCH) as video:
        video("a cat", **SMALL)
        text, dit, vae = (video._parts.text, video._parts.dit, video._parts.full)
        assert text.loaded
        assert dit.loaded
        assert vae.loaded
        plan = video.placements
        every = max(plan.peak(need.name) for need in plan.needs)
        least = max(need.passing for need in plan.needs)
    return [2 * every, (every + least) // 2, least]


def test_the_same_bytes_with_any_budget(
    folder: Path, wanted: dict[str, Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts after one another, then both in one call; no more memory than the budget, and none at the end.

    What does not stay comes from page-locked memory, or from the file each time.
    """
    stays = []
    for budget, host in zip(budgets(folder), (0, 10**9, 0), strict=True):
        counted = Counted(monkeypatch)
        with VideoPipeline.load(folder, backend=TORCH, vram=budget, host=host) as video:
            for prompt in PROMPTS:
                assert same(video(prompt, **SMALL), wanted[prompt]), (budget, prompt)
            stays.append(video.placements.stay)
            both: list[Video] = []
            video.make([Request(prompt, **SMALL) for prompt in PROMPTS], both.append)
            assert all(same(got, wanted[prompt]) for got, prompt in zip(both, PROMPTS, strict=True)), budget
            assert counted.live == sum(need.weights for need in video.placements.needs if need.name in stays[-1])
        assert counted.live == 0
        assert counted.most <= budget
        monkeypatch.undo()
        monkeypatch.setattr(EmbedsCache, "get", lambda self, prompt: None)
    assert stays[0] == {TEXT, DIT, DECODE}
    assert stays[2] == frozenset()


def test_nothing_is_kept_where_nothing_comes_again(folder: Path, wanted: dict[str, Video]) -> None:
    with VideoPipeline.load(folder, backend=TORCH, keep=False) as video:
        assert same(video("a cat", **SMALL), wanted["a cat"])
        assert not any(part.loaded for part in video._parts.all)


def test_a_call_is_cancelled_between_any_two_pieces(
    folder: Path, wanted: dict[str, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each point where it is asked: nothing is left of the file, and the next call is as ever."""
    monkeypatch.setattr(Vae, "decode", three_chunks)
    asked = 0

    def never() -> bool:
        nonlocal asked
        asked += 1
        return False

    with VideoPipeline.load(folder, backend=TORCH) as video:
        video("a cat", tmp_path / "once", **SMALL, cancelled=never)
        assert asked >= 2 + 1 + 3  # layers, a step, chunks
        for point in range(asked):
            calls = iter([False] * point + [True])
            with pytest.raises(Cancelled):
                video("a cat", tmp_path / "frames", **SMALL, cancelled=partial(next, calls))
            assert [path.name for path in tmp_path.iterdir()] == ["once"]
        monkeypatch.undo()
        assert np.array_equal(video("a cat", **SMALL).latents, wanted["a cat"].latents)


@pytest.mark.parametrize("name", [TEXT_NAME, VAE_NAME, "weights-model.safetensors"])
def test_weights_that_change_behind_a_pipelines_back_are_told(
    folder: Path, tmp_path: Path, wanted: dict[str, Video], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In place, between two calls of a pipeline that brings them for each; written back, it goes on."""
    monkeypatch.setattr(file_checks, "_SETTLED_NS", -(10**12))
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    path = copy / name
    with VideoPipeline.load(copy, backend=TORCH, keep=False) as video:
        assert same(video("a cat", **SMALL), wanted["a cat"])
        whole = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(len(whole) - 1)
            file.write(bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"A file is damaged: {name}"):
            video("a cat", tmp_path / "out", **SMALL)
        assert not (tmp_path / "out").exists()
        with path.open("r+b") as file:
            file.write(whole)
        assert same(video("a cat", **SMALL), wanted["a cat"])
        path.unlink()  # its own file is open: a new export may take the bundle's place
        assert same(video("a cat", **SMALL), wanted["a cat"])


def test_a_video_that_is_killed_on_its_way_to_the_file_leaves_nothing_in_place(tmp_path: Path) -> None:
    """By a signal that no Python sees, with the first frames written; the next one sweeps up behind it."""
    out = tmp_path / "frames"

    def frames() -> Iterator[Any]:
        for number in range(3):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield np.zeros((1, 16, 16, 3), np.uint8)

    if child := os.fork():
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert not out.exists() or list(out.iterdir()) == []
        whole = [np.zeros((1, 16, 16, 3), np.uint8)] * 2
        written(whole, 2, sink_for(out, (16, 16), 16), "frames", Silent(), lambda: None)
        assert [path.name for path in tmp_path.iterdir()] == ["frames"]
        assert len(list(out.iterdir())) == 2
        return
    written(frames(), 3, sink_for(out, (16, 16), 16), "frames", Silent(), lambda: None)
    os._exit(1)


def test_places_that_cannot_be_written_are_told_before_the_work(folder: Path, tmp_path: Path) -> None:
    begun: list[str] = []
    with VideoPipeline.load(folder, backend=TORCH) as video:
        for out in (tmp_path / "nowhere" / "frames", Path("/proc/frames"), tmp_path / "nowhere" / "x.safetensors"):
            with pytest.raises(UserError, match="cannot be written"):
                video("a cat", out, **SMALL, on_step=lambda step, latents: begun.append("step"))
    assert begun == []


@pytest.mark.parametrize("given", [{}, {"prompt": "a cat", "embeds": np.zeros((3, 4096), np.float32)}])
def test_a_video_has_one_source_of_text(folder: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="one source of text"):
        VideoPipeline.load(folder, backend=TORCH)(**given)


def _calling(call: Callable[[], object], *_: Any) -> None:
    call()


def test_errors_of_a_callback_leave_the_pipeline_as_it_was(folder: Path, wanted: dict[str, Video]) -> None:
    def failing(step: Any, latents: Any) -> None:
        raise ZeroDivisionError

    with VideoPipeline.load(folder, backend=TORCH) as video:
        with pytest.raises(ZeroDivisionError):
            video("a cat", **SMALL, on_step=failing)
        inner: list[Callable[[], object]] = [lambda: video("a cat"), video.close]
        for call in inner:
            with pytest.raises(UserError, match="in use by another call"):
                video("a cat", **SMALL, on_step=partial(_calling, call))
        assert same(video("a cat", **SMALL), wanted["a cat"])
    with pytest.raises(UserError, match="closed"):
        video("a cat", **SMALL)
    video.close()
