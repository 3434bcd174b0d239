"""One half of the VAE, chunk after chunk: weights and caches on the device, chunks in host memory on both sides.

Several tracks (the tiles of a picture) may take turns: they share weights, chunks and activations, and each has caches.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.dtypes import DTYPES
from plugins.errors import UserError
from runtime.backends.protocol import Memory, Runner, tensors
from runtime.bundle import StageEntry
from runtime.dims import Sizes
from runtime.layout import weight_layout
from runtime.media.vae.tensors import TOTAL, cache_layout, input_layout, output_layout
from runtime.media.vae.weights import VaeWeights


class Chunks:
    """A context. ``first`` runs the first chunk, ``following`` the others; without ``first``, caches begin as zeros.

    Both take the same weights. A stage reads a track's caches and writes the spare ones, which then are the track's:
    ``tracks`` of the same sizes need one set of caches each, and one more.
    """

    _input: Memory
    _output: Memory
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
        self._held: list[Memory] = []
        self._chunks = [0] * tracks

    @staticmethod
    def held(following: StageEntry, sizes: Sizes, tracks: int = 1) -> int:
        """Bytes of device memory that a sequence holds besides activations: weights, caches, a chunk in and out."""
        chunks = input_layout(following, sizes).nbytes + output_layout(following, sizes).nbytes
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

    def step(self, chunk: npt.NDArray[Any], track: int = 0) -> npt.NDArray[Any]:
        """The output of a track's next chunk; bf16 tensors are bits in uint16 on both sides.

        Raises UserError where a stage that sums up its output gave NaN or infinity.
        """
        stage = self._first if self._first is not None and self._chunks[track] == 0 else self._following
        taken, given = input_layout(stage, self._sizes), output_layout(stage, self._sizes)
        place = taken.places["chunk"]
        if chunk.shape != place.shape or chunk.dtype != DTYPES[place.dtype].numpy:
            raise ValueError(f"{stage.name} takes {place.dtype} {place.shape}, got {chunk.dtype} {chunk.shape}")
        read, write = tensors(self._held[track], self._caches), tensors(self._spare, self._caches)
        inputs = {**self._weights, **tensors(self._input, taken), **({} if stage is self._first else read)}
        self._device.upload(self._input, 0, np.ascontiguousarray(chunk).reshape(-1).view(np.uint8), "compute")
        self._runner.run(stage.name, inputs, {**tensors(self._output, given), **write})
        self._held[track], self._spare = self._spare, self._held[track]
        self._chunks[track] += 1
        raw = np.empty(given.nbytes, np.uint8)
        self._device.download(self._output, 0, raw)
        found = {
            name: raw[place.offset : place.offset + place.nbytes].view(DTYPES[place.dtype].numpy).reshape(place.shape)
            for name, place in given.places.items()
        }
        if not np.isfinite(found.get(TOTAL, 0)).all():
            raise UserError("The VAE gave NaN or infinity.", remedy="check the VAE's weights")
        return found["chunk"]

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
        self._input = self._allocate(max(input_layout(stage, self._sizes).nbytes for stage in stages))
        self._output = self._allocate(max(output_layout(stage, self._sizes).nbytes for stage in stages))

    def _allocate(self, nbytes: int) -> Memory:
        memory = self._device.allocate(max(1, nbytes))
        self._memories.append(memory)
        return memory

    def _free(self) -> None:
        for memory in self._memories:
            memory.free()
        self._memories.clear()
