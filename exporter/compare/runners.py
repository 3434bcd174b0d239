"""The machines as Polygraphy runners: one iteration is one block, or one rCM step.

Feeds and outputs are torch tensors on the host, so that ``Comparator.run`` hands the same ones to every runner and
saves them as JSON; names and order of a feed are those of its ``*_FEED`` table.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from torch import Tensor

from exporter.compare.machines.machine import BlockInput, Machine, OpMachine, forward, moved
from exporter.compare.machines.ops import Recorder, Replay, labelled
from exporter.compare.scene import Scene
from exporter.compare.thresholds import SAME_ARITHMETIC

Feed = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]]

BLOCK_FEED: Shapes = {
    "x": (torch.float32, (None, None)),
    "context": (torch.float32, (None, None)),
    "e0": (torch.float32, (6, None)),
    "cos": (torch.float32, (None, 64)),
    "sin": (torch.float32, (None, 64)),
    "layer": (torch.int64, ()),
}
BLOCK_OUTPUT = "x"
STEP_FEED: Shapes = {"tokens": (torch.float32, (None, 64)), "step": (torch.int64, ())}


class _Runner(BaseRunner):  # type: ignore[misc]
    """A runner with a fixed feed that measures its own time."""

    feed: Shapes

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for name, (dtype, shape) in self.feed.items():
            metadata.add(name, dtype, shape)
        return metadata

    def infer_impl(self, feed_dict: Feed) -> OrderedDict[str, Tensor]:
        started = time.perf_counter()
        outputs = OrderedDict((name, tensor.cpu().contiguous()) for name, tensor in self.outputs(feed_dict).items())
        self.inference_time = time.perf_counter() - started
        return outputs

    def outputs(self, feed: Feed) -> Mapping[str, Tensor]:
        raise NotImplementedError


def _given(machine: Machine | OpMachine, feed: Feed) -> tuple[int, BlockInput]:
    """The layer, and its input on the machine's device."""
    given = BlockInput(feed["x"], feed["context"], feed["e0"], feed["cos"], feed["sin"])
    return int(feed["layer"]), moved(given, machine.device)


class BlockRunner(_Runner):
    """Block ``layer`` of one machine: x → x."""

    feed = BLOCK_FEED

    def __init__(self, machine: Machine, expert: str) -> None:
        super().__init__(machine.name)
        self._machine, self._expert = machine, expert
        self.last: Mapping[str, Tensor] = {}

    def outputs(self, feed: Feed) -> Mapping[str, Tensor]:
        self.last = {BLOCK_OUTPUT: self._machine.block(self._expert, *_given(self._machine, feed)).cpu()}
        return self.last


class OpsRunner(_Runner):
    """Every op of block ``layer``, and the block's x: an INT8 tensor and its scales are one fp32 tensor."""

    feed = BLOCK_FEED

    def __init__(self, machine: OpMachine, expert: str, *, exact: bool) -> None:
        """``exact``: the ops are answered just as the oracle answers them."""
        super().__init__(machine.name)
        self._machine, self._expert, self._exact = machine, expert, exact
        self.recorder = Recorder(machine.evaluate)

    def outputs(self, feed: Feed) -> Mapping[str, Tensor]:
        self.recorder = Recorder(self._machine.evaluate)
        x = self._machine.block_by(self.recorder, self._expert, *_given(self._machine, feed))
        given: dict[str, Tensor] = {}
        for call, out in self.recorder.calls.values():
            given |= labelled(call, out)
        return {**given, BLOCK_OUTPUT: x}

    def bounds(self) -> dict[str, float]:
        """Output's name → how far it may be from its oracle's, of the last run."""
        found: dict[str, float] = {}
        for call, out in self.recorder.calls.values():
            bound = SAME_ARITHMETIC if self._exact else call.op.bound(call.attributes).compare
            found |= dict.fromkeys(labelled(call, out), bound)
        return found


class ReplayRunner(_Runner):
    """What each op of the candidate's last run should have given, by a machine with its own weights and options."""

    feed = BLOCK_FEED

    def __init__(self, name: str, machine: OpMachine, candidate: OpsRunner, expert: str) -> None:
        super().__init__(name)
        self._machine, self._candidate, self._expert = machine, candidate, expert

    def outputs(self, feed: Feed) -> Mapping[str, Tensor]:
        replay = Replay(self._machine.evaluate, self._candidate.recorder.calls)
        self._machine.block_by(replay, self._expert, *_given(self._machine, feed))
        return replay.expected


class StepRunner(_Runner):
    """One rCM step of the whole DiT. ``free``: after the first step it goes on from its own tokens, not the feed's."""

    feed = STEP_FEED

    def __init__(self, machine: Machine, layers: int, scene: Scene, *, free: bool, tick: Callable[[], None]) -> None:
        super().__init__(machine.name)
        self._machine, self._layers, self._scene = machine, layers, scene
        self._free, self._tick = free, tick
        self._own: Tensor | None = None

    def outputs(self, feed: Feed) -> Mapping[str, Tensor]:
        step = int(feed["step"])
        tokens = self._own if self._free and step and self._own is not None else feed["tokens"]
        tokens, v = forward(self._machine, self._layers, self._scene, step, tokens)
        self._own = tokens
        self._tick()
        return {"v": v, "tokens": tokens}


class RecordedRunner(_Runner):
    """Gives again what a runner gave: the reference of a second comparison, run once."""

    def __init__(self, name: str, feed: Shapes, recorded: Iterator[Mapping[str, Tensor]]) -> None:
        super().__init__(name)
        self.feed, self._recorded = feed, recorded

    def outputs(self, feed: Feed) -> Mapping[str, Tensor]:
        return next(self._recorded)
