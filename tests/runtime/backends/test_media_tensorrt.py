"""The TensorRT runner on engines that stand in: when memory is given, shapes set and engines loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")

import tensorrt_rtx

from exporter.models import MODELS
from plugins.errors import UserError
from runtime.backends import tensorrt
from runtime.report import Silent
from tests.support.media_bundle import bare_manifest


class Device:
    stream = 7

    def __init__(self) -> None:
        self.live: dict[int, int] = {}

    def allocate(self, nbytes: int) -> Any:
        address = 4096 * (len(self.live) + 1) + nbytes
        self.live[address] = nbytes
        return SimpleNamespace(nbytes=nbytes, address=address, free=lambda: self.live.pop(address))

    def finish(self, event: Any = None) -> None:
        pass


class StandIn:
    """An engine that forgets its memory whenever its shapes are set, and refuses to run without enough."""

    loaded: list[str] = []  # noqa: RUF012

    def __init__(self, trt: Any, runtime: Any, log: Any, path: Path, stage: Any, cache: Path | None) -> None:
        self.name, self.need, self.memory, self.cache = stage.name, 0, (0, 0), cache
        self.loaded.append(stage.name)

    def memory_for(self, sizes: Any) -> int:
        self.memory, self.need = (0, 0), 100 * sizes["H"] * sizes["W"]
        return self.need

    def use_memory(self, address: int, nbytes: int) -> None:
        self.memory = (address, nbytes)

    def run(self, inputs: Any, outputs: Any, stream: int) -> None:
        assert stream == 7
        assert self.memory[1] >= self.need > 0
        assert self.memory[0] in inputs["live"]

    def save_cache(self) -> None:
        pass

    def close(self) -> None:
        self.memory = (0, 0)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    import msgspec

    monkeypatch.setattr(tensorrt, "Engine", StandIn)
    monkeypatch.setattr(StandIn, "loaded", [])
    manifest = bare_manifest(MODELS["wan-tiny"])
    stages = [msgspec.structs.replace(s, engine=s.onnx) for s in manifest.stages]
    stages[-1] = msgspec.structs.replace(stages[-1], engine=None)
    manifest = msgspec.structs.replace(manifest, stages=tuple(stages))
    return tensorrt.TensorrtRunner(tensorrt_rtx, Path("bundle"), manifest, Device(), Silent())  # type: ignore[arg-type]


def test_memory_grows_and_every_prepared_stage_gets_the_new_one(runner: Any) -> None:
    def run(stage: str) -> None:
        runner.run(stage, {"live": runner.device.live}, {})

    runner.prepare({"decode_latent": {"H": 4, "W": 4}})
    run("decode_latent")
    runner.prepare({"decode_first": {"H": 8, "W": 8}})
    run("decode_first")
    run("decode_latent")  # on the larger memory: the smaller one is gone
    assert list(runner.device.live.values()) == [6400]
    runner.prepare({"decode_latent": {"H": 2, "W": 2}})
    run("decode_latent")
    assert StandIn.loaded == ["decode_latent", "decode_first"]
    runner.close()
    assert runner.device.live == {}


def test_asking_for_a_size_unprepares(runner: Any) -> None:
    """TensorRT forgets the memory when shapes are set: to run then would be on none."""
    runner.prepare({"decode_latent": {"H": 4, "W": 4}})
    assert runner.activation_bytes("decode_latent", {"H": 3, "W": 3}) == 900
    with pytest.raises(ValueError, match="without being prepared"):
        runner.run("decode_latent", {"live": runner.device.live}, {})
    runner.prepare({"decode_latent": {"H": 4, "W": 4}})
    runner.run("decode_latent", {"live": runner.device.live}, {})


def test_a_bundle_without_engines_says_so(runner: Any) -> None:
    with pytest.raises(UserError, match="no engine of tiny_next"):
        runner.prepare({"tiny_next": {"H": 4, "W": 4}})
