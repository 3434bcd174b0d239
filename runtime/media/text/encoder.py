"""Token ids → umT5's embeddings. Weights stay, or pass through two slots, layer by layer, once for all of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from runtime.weights.memory_plan import RING
from runtime.weights.slots import Slots
from runtime.weights.streaming import Kept, Unit
from runtime.weights.upload import Staging, Stored

Embeds = npt.NDArray[np.uint16]
_EMBEDDING = "token_embedding.weight"


@dataclass(frozen=True)
class TextBytes:
    """Bytes of device memory: all ``weights``, those of a run that keeps two layers' at a time, and what else it takes.

    ``weights`` is 0 where nobody knows how many layers there are.
    """

    weights: int
    passing: int
    running: int


def text_bytes(manifest: Manifest, activations: Activations, lengths: Sequence[int], layers: int = 0) -> TextBytes:
    """For prompts of so many tokens each."""
    block, norm = manifest.stage("text_block"), manifest.stage("text_norm")
    io = sum(_places((block, norm), length).nbytes for length in lengths)
    running = max(activations(stage.name, {"L": max(lengths)}) for stage in (block, norm))
    slot, last = weight_layout(block).nbytes, weight_layout(norm).nbytes
    return TextBytes(layers * slot + last if layers else 0, min(layers or RING, RING) * slot + last, io + running)


def text_layers(file: WeightsFile) -> int:
    """How many layers a text encoder's weights are of."""
    return len({name.split(".")[1] for name in file.tensors if name.startswith("blocks.")})


@dataclass(frozen=True)
class _Places:
    """Where layers 1 … N and the norm behind them lie (``runtime.weights.streaming.Places``)."""

    layers: int
    resident: frozenset[int]
    all_experts: bool = False


def _places(stages: Sequence[StageEntry], length: int) -> Layout:
    """A prompt's tensors."""
    return run_layout(stages, {"L": length})


def _turns(prompt: dict[str, DeviceTensor]) -> tuple[DeviceTensor, DeviceTensor]:
    """The two places that x changes between from layer to layer."""
    return prompt["x"], prompt["x" + OUTPUT_SUFFIX]


class TextEncoder:
    """The text encoder of one bundle. Its weights stay on the device once they were ``load``ed, until ``unload``.

    Else a run brings two layers at a time. ``staging``: how they come; ``kept``: page-locked memory that keeps them.
    """

    def __init__(
        self,
        runner: Runner,
        manifest: Manifest,
        file: WeightsFile,
        staging: Staging,
        kept: Kept | None = None,
    ) -> None:
        self._runner, self._device, self._file, self._manifest = runner, runner.device, file, manifest
        self._block, self._norm = manifest.stage("text_block"), manifest.stage("text_norm")
        self._slot, self._last = weight_layout(self._block), weight_layout(self._norm)
        self._staging, self._kept, self._held = staging, kept, list[Slots]()
        self.layers = text_layers(file)
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
        """Bytes of device memory for prompts of these lengths, two layers' weights at a time."""
        found = text_bytes(self._manifest, self._runner.activation_bytes, lengths, self.layers)
        return found.passing + found.running

    @property
    def loaded(self) -> bool:
        """Whether the weights are on the device, or on their way."""
        return bool(self._held)

    def load(self, *, stays: bool) -> None:
        """Start to bring the weights: all of them, or the first two layers of a run that brings the others itself."""
        resident = frozenset(range(1, self.layers + 1)) if stays or self.layers <= RING else frozenset[int]()
        if not self._held:
            places = _Places(self.layers, resident)
            device, uses = self._device, self._uses
            self._held.append(Slots(device, self._staging, places, uses, self._find, self._kept))
        self._held[0].prefetch(self._uses)

    def unload(self) -> None:
        """Give the weights' memory back."""
        while self._held:
            self._held.pop().close()

    @property
    def _uses(self) -> list[Unit]:
        """A run: layers 1 … N, and the norm."""
        return [("text", unit) for unit in range(1, self.layers + 2)]

    def _find(self, unit: Unit) -> Stored:
        last = unit[1] > self.layers
        return Stored(self._file, "" if last else f"blocks.{unit[1] - 1}.", self._last if last else self._slot)

    def encode(
        self, prompts: Sequence[Sequence[int]], update: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Embeds]:
        """bf16 bits [n, 4096] of each prompt's n token ids. Raises UserError on an id without a row."""
        rows = [self._rows(ids) for ids in prompts]
        stays, memories = bool(self._held), list[Memory]()
        self.load(stays=False)
        try:
            places = [_places((self._block, self._norm), len(ids)) for ids in prompts]
            for where in places:
                memories.append(self._device.allocate(where.nbytes))
            for memory, where, x in zip(memories, places, rows, strict=True):
                self._upload(memory, where.places["x"].offset, x)
                self._upload(memory, where.places["buckets"].offset, relative_buckets(len(x)))
            named = [tensors(memory, where) for memory, where in zip(memories, places, strict=True)]
            slots = self._held[0]
            slots.begin(self._uses)
            self._run_layers(named, slots, update)
            return self._finish(named, slots.weights(self.layers, self._uses[-1]))
        finally:
            self._held[0].stream.stop()
            self._device.finish()
            for memory in memories:
                memory.free()
            if not stays:
                self.unload()

    def _run_layers(
        self, prompts: list[dict[str, DeviceTensor]], slots: Slots, update: Callable[[int, int], None]
    ) -> None:
        """Every layer on every prompt, as its weights are there."""
        for layer, unit in enumerate(self._uses[: self.layers]):
            weights = slots.weights(layer, unit)
            for prompt in prompts:
                self._run_block(prompt, weights, layer)
            slots.stream.release(layer)
            update(layer + 1, self.layers)

    def _run_block(self, prompt: dict[str, DeviceTensor], weights: dict[str, DeviceTensor], layer: int) -> None:
        read, write = _turns(prompt) if layer % 2 == 0 else reversed(_turns(prompt))
        self._runner.prepare({"text_block": {"L": read.place.shape[0]}})
        self._runner.run("text_block", {"x": read, "buckets": prompt["buckets"], **weights}, {"x": write})

    def _finish(self, prompts: list[dict[str, DeviceTensor]], weights: dict[str, DeviceTensor]) -> list[Embeds]:
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
