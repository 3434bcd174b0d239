"""Token ids → umT5's embeddings. Weights pass through two slots, layer by layer, once for all prompts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.backends.protocol import Activations, DeviceTensor, Memory, Runner, tensors
from runtime.bundle import OUTPUT_SUFFIX, Manifest, StageEntry
from runtime.checks import rebuild_command
from runtime.layout import Layout, run_layout, weight_layout
from runtime.media.text.relative_position import relative_buckets
from runtime.numerics import from_bf16_bits
from runtime.weights.file import WeightsFile

Embeds = npt.NDArray[np.uint16]
_SLOTS = 2
_EMBEDDING = "token_embedding.weight"


def text_bytes(manifest: Manifest, activations: Activations, lengths: Sequence[int]) -> int:
    """Bytes of device memory for prompts of so many tokens each: two layers' weights, the prompts, activations."""
    block, norm = manifest.stage("text_block"), manifest.stage("text_norm")
    io = sum(_places((block, norm), length).nbytes for length in lengths)
    running = max(activations(stage.name, {"L": max(lengths)}) for stage in (block, norm))
    return _SLOTS * weight_layout(block).nbytes + weight_layout(norm).nbytes + io + running


def _places(stages: Sequence[StageEntry], length: int) -> Layout:
    """A prompt's tensors."""
    return run_layout(stages, {"L": length})


def _turns(prompt: dict[str, DeviceTensor]) -> tuple[DeviceTensor, DeviceTensor]:
    """The two places that x changes between from layer to layer."""
    return prompt["x"], prompt["x" + OUTPUT_SUFFIX]


class TextEncoder:
    """The text encoder of one bundle. Its weights are never all on the device: two layers at a time."""

    def __init__(self, runner: Runner, manifest: Manifest, file: WeightsFile) -> None:
        self._runner, self._device, self._file, self._manifest = runner, runner.device, file, manifest
        self._block, self._norm = manifest.stage("text_block"), manifest.stage("text_norm")
        self._slot, self._last = weight_layout(self._block), weight_layout(self._norm)
        self.layers = len({name.split(".")[1] for name in file.tensors if name.startswith("blocks.")})
        problems = [file.check(f"blocks.{layer}.", self._slot) for layer in range(self.layers)]
        problems += [file.check("", self._last), self._embedding_problem()]
        for problem in problems:
            if problem or not self.layers:
                again = rebuild_command(manifest, file.path.parent)
                raise UserError(
                    f"The text encoder's weights are not of this bundle: {problem or 'no blocks'}.",
                    expected=f"weights packed for --text-linear {manifest.text_linear}",
                    remedy=f"{again} --text-encoder PATH_OR_HF_ID",
                )

    def _embedding_problem(self) -> str | None:
        """What is wrong with the table of tokens, whose rows the host reads, or None."""
        found, wide = self._file.tensors.get(_EMBEDDING), self._norm.activations[0].dims[-1]
        if found is None:
            return f"no {_EMBEDDING}"
        whole = found.dtype == "bf16" and len(found.shape) == 2 and found.shape[0] > 0 and found.shape[1] == wide
        return None if whole else f"{_EMBEDDING} is {found.dtype} {list(found.shape)}, and rows of {wide} are looked up"

    def nbytes(self, lengths: Sequence[int]) -> int:
        """Bytes of device memory for prompts of these lengths."""
        return text_bytes(self._manifest, self._runner.activation_bytes, lengths)

    def encode(
        self, prompts: Sequence[Sequence[int]], update: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Embeds]:
        """bf16 bits [n, 4096] of each prompt's n token ids. Raises UserError on an id without a row."""
        rows = [self._rows(ids) for ids in prompts]
        memories: list[Memory] = []

        def allocate(nbytes: int) -> Memory:
            memories.append(self._device.allocate(nbytes))
            return memories[-1]

        try:
            places = [_places((self._block, self._norm), len(ids)) for ids in prompts]
            works = [allocate(where.nbytes) for where in places]
            slots = [allocate(self._slot.nbytes) for _ in range(_SLOTS)]
            last = allocate(self._last.nbytes)
            for memory, where, x in zip(works, places, rows, strict=True):
                self._upload(memory, where.places["x"].offset, x)
                self._upload(memory, where.places["buckets"].offset, relative_buckets(len(x)))
            self._device.finish()
            named = [tensors(memory, where) for memory, where in zip(works, places, strict=True)]
            self._run_layers(named, slots, update)
            return self._finish(named, last)
        finally:
            self._device.finish()
            for memory in memories:
                memory.free()

    def _run_layers(
        self, prompts: list[dict[str, DeviceTensor]], slots: list[Memory], update: Callable[[int, int], None]
    ) -> None:
        """Every layer on every prompt: while one slot is computed on, the other is filled from pinned memory."""
        pinned = [self._device.pinned(self._slot.nbytes) for _ in range(_SLOTS)]
        used, copied = [None] * _SLOTS, [None] * _SLOTS
        try:
            for layer in range(self.layers):
                turn = layer % _SLOTS
                if copied[turn] is not None:
                    self._device.finish(copied[turn])  # the pinned memory is read until then
                self._file.fill(f"blocks.{layer}.", self._slot, 0, pinned[turn].array)
                if used[turn] is not None:
                    self._device.wait("copy", used[turn])
                self._device.upload(slots[turn], 0, pinned[turn].array, "copy")
                copied[turn] = self._device.record("copy")
                self._device.wait("compute", copied[turn])
                for prompt in prompts:
                    self._run_block(prompt, tensors(slots[turn], self._slot), layer)
                used[turn] = self._device.record("compute")
                update(layer + 1, self.layers)
        finally:
            self._device.finish()
            for memory in pinned:
                memory.free()

    def _run_block(self, prompt: dict[str, DeviceTensor], weights: dict[str, DeviceTensor], layer: int) -> None:
        read, write = _turns(prompt) if layer % 2 == 0 else reversed(_turns(prompt))
        self._runner.prepare({"text_block": {"L": read.place.shape[0]}})
        self._runner.run("text_block", {"x": read, "buckets": prompt["buckets"], **weights}, {"x": write})

    def _finish(self, prompts: list[dict[str, DeviceTensor]], memory: Memory) -> list[Embeds]:
        data = np.empty(self._last.nbytes, np.uint8)
        self._file.fill("", self._last, 0, data)
        self._device.upload(memory, 0, data, "compute")
        weights = tensors(memory, self._last)
        found = []
        for prompt in prompts:
            x, embeds = _turns(prompt)[self.layers % 2], prompt["embeds"]
            self._runner.prepare({"text_norm": {"L": x.place.shape[0]}})
            self._runner.run("text_norm", {"x": x, **weights}, {"embeds": embeds})
            out = np.empty(embeds.place.shape, np.uint16)
            self._device.download(embeds.memory, embeds.place.offset, out.reshape(-1).view(np.uint8))
            if not np.isfinite(from_bf16_bits(out)).all():
                raise UserError("The text encoder gave NaN or infinity.", remedy="check its weights")
            found.append(out)
        return found

    def _rows(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        vocabulary = self._file.tensors[_EMBEDDING].shape[0]
        if max(ids) >= vocabulary or min(ids) < 0:
            raise UserError(
                "The tokenizer is not this text encoder's.", expected=f"ids below {vocabulary}", got=str(max(ids))
            )
        return from_bf16_bits(self._file.read_rows(_EMBEDDING, ids))

    def _upload(self, memory: Memory, offset: int, array: npt.NDArray[np.generic]) -> None:
        self._device.upload(memory, offset, np.ascontiguousarray(array).reshape(-1).view(np.uint8), "compute")
