"""One half of the VAE, chunk after chunk: weights and caches on the device, chunks in host memory on both sides.

Several tracks (the tiles of a picture) may take turns: they share weights, chunks and activations, and each has caches.
A chunk may be on its way while the results of the one before it are copied to the host, behind its compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.dtypes import DTYPES
from plugins.errors import UserError
from runtime.backends.protocol import Event, HostMemory, Memory, Runner, tensors
from runtime.bundle import StageEntry
from runtime.dims import Sizes
from runtime.layout import Layout, weight_layout
from runtime.media.vae.tensors import TOTAL, cache_layout, input_layout, output_layout
from runtime.media.vae.weights import VaeWeights

_AHEAD = 2  # chunks under way at once: one computes, one is copied out
Values = npt.NDArray[Any]


class _Turn:
    """What a chunk under way has for itself: its place on the device, and page-locked memory for both copies."""

    def __init__(self, output: Memory, taken: HostMemory, given: HostMemory) -> None:
        self.output, self.taken, self.given = output, taken, given


@dataclass(frozen=True)
class _Started:
    """A chunk under way; its results are in the turn's host memory when ``done`` has passed."""

    layout: Layout
    turn: _Turn
    done: Event


class Chunks:
    """A context. ``first`` runs the first chunk, ``following`` the others; without ``first``, caches begin as zeros.

    Both take the same weights. A stage reads a track's caches and writes the spare ones, which then are the track's:
    ``tracks`` of the same sizes need one set of caches each, and one more.
    """

    _input: Memory
    _spare: Memory

    def __init__(
        self,
        runner: Runner,
        weights: VaeWeights,
        first: StageEntry | None,
        following: StageEntry,
        sizes: Sizes,
        tracks: int = 1,
    ) -> None:
        self._runner, self._device, self._sizes = runner, runner.device, sizes
        self._first, self._following = first, following
        self._source, self._caches = weights, cache_layout(following, sizes)
        self._memories: list[Memory] = []
        self._pinned: list[HostMemory] = []
        self._held: list[Memory] = []
        self._turns: list[_Turn] = []
        self._count = 0
        self._chunks = [0] * tracks

    @staticmethod
    def held(following: StageEntry, sizes: Sizes, tracks: int = 1) -> int:
        """Bytes of device memory that a sequence holds besides activations: weights, caches, a chunk in, two out."""
        chunks = input_layout(following, sizes).nbytes + _AHEAD * output_layout(following, sizes).nbytes
        return weight_layout(following).nbytes + (tracks + 1) * cache_layout(following, sizes).nbytes + chunks

    def __enter__(self) -> Chunks:
        try:
            self._enter()
        except BaseException:
            self._free()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._device.finish()
        self._free()

    def step(self, chunk: Values, track: int = 0) -> Values:
        """The output of a track's next chunk; bf16 tensors are bits in uint16 on both sides.

        Raises UserError where a stage that sums up its output gave NaN or infinity.
        """
        return self._finish(self._start(chunk, track))

    def steps(self, chunks: Iterable[tuple[Values, int]]) -> Iterator[Values]:
        """``step`` of each (chunk, track), in order; the next one is computed while the caller has a result in hand."""
        before: _Started | None = None
        for chunk, track in chunks:
            started = self._start(chunk, track)
            if before is not None:
                yield self._finish(before)
            before = started
        if before is not None:
            yield self._finish(before)

    def _start(self, chunk: Values, track: int) -> _Started:
        stage = self._first if self._first is not None and self._chunks[track] == 0 else self._following
        taken, given = input_layout(stage, self._sizes), output_layout(stage, self._sizes)
        place, device = taken.places["chunk"], self._device
        if chunk.shape != place.shape or chunk.dtype != DTYPES[place.dtype].numpy:
            raise ValueError(f"{stage.name} takes {place.dtype} {place.shape}, got {chunk.dtype} {chunk.shape}")
        turn = self._turns[self._count % _AHEAD]
        self._count += 1
        read, write = tensors(self._held[track], self._caches), tensors(self._spare, self._caches)
        inputs = {**self._weights, **tensors(self._input, taken), **({} if stage is self._first else read)}
        raw = turn.taken.array[: place.nbytes]
        raw[:] = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
        device.upload(self._input, 0, raw, "compute")
        self._runner.run(stage.name, inputs, {**tensors(turn.output, given), **write})
        self._held[track], self._spare = self._spare, self._held[track]
        self._chunks[track] += 1
        device.wait("copy", device.record("compute"))
        device.fetch(turn.output, 0, turn.given.array[: given.nbytes], "copy")
        return _Started(given, turn, device.record("copy"))

    def _finish(self, started: _Started) -> Values:
        self._device.finish(started.done)
        raw = started.turn.given.array
        found = {
            name: raw[place.offset : place.offset + place.nbytes].view(DTYPES[place.dtype].numpy).reshape(place.shape)
            for name, place in started.layout.places.items()
        }
        if not np.isfinite(found.get(TOTAL, 0)).all():
            title = "tiny decoder" if self._following.component == "tiny" else "VAE"
            raise UserError(f"The {title} gave NaN or infinity.", remedy=f"check the {title}'s weights")
        return found["chunk"].copy()

    def _enter(self) -> None:
        stages = [stage for stage in (self._first, self._following) if stage is not None]
        self._runner.prepare({stage.name: self._sizes for stage in stages})
        self._weights = self._source.of(self._following)
        self._held = [self._allocate(self._caches.nbytes) for _ in self._chunks]
        self._spare = self._allocate(self._caches.nbytes)
        if self._first is None:
            zeros = np.zeros(self._caches.nbytes, np.uint8)
            for memory in self._held:
                self._device.upload(memory, 0, zeros, "compute")
            self._device.finish()
        taken = max(input_layout(stage, self._sizes).nbytes for stage in stages)
        given = max(output_layout(stage, self._sizes).nbytes for stage in stages)
        self._input = self._allocate(taken)
        self._turns = [_Turn(self._allocate(given), self._pin(taken), self._pin(given)) for _ in range(_AHEAD)]

    def _pin(self, nbytes: int) -> HostMemory:
        memory = self._device.pinned(nbytes)
        self._pinned.append(memory)
        return memory

    def _allocate(self, nbytes: int) -> Memory:
        memory = self._device.allocate(max(1, nbytes))
        self._memories.append(memory)
        return memory

    def _free(self) -> None:
        for memory in self._memories:
            memory.free()
        self._memories.clear()
        for pinned in self._pinned:
            pinned.free()
        self._pinned.clear()
