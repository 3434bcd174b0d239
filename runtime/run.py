"""One run on a pipeline's device: its inputs and outputs in one allocation, and a step as a walk over the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType

import numpy as np
import numpy.typing as npt

from plugins.interrupts import uninterrupted
from runtime.backends.protocol import DeviceTensor, Event, Memory, Runner, tensors
from runtime.bundle import OUTPUT_SUFFIX, Manifest
from runtime.layout import run_layout
from runtime.numerics import Array, rope_tables, time_features
from runtime.sampler import NonFiniteError, Step
from runtime.video_shape import tokens_of
from runtime.weights.storage import STAGES, Storage
from runtime.weights.streaming import Unit

_BF16_EXPONENT = 0x7F80  # all ones: infinity or NaN


@dataclass(frozen=True)
class UnitTime:
    """Seconds of one stage run, waiting for its weights included.

    ``step`` counts from 0, ``unit`` is 0 for embed, 1 … N for layers, N + 1 for head.
    """

    step: int
    stage: str
    unit: int
    seconds: float


@lru_cache(maxsize=2)
def rope(shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """``rope_tables``, which take a tenth of a second, of the shapes of late."""
    return rope_tables(shape)


class Run:
    """A context that holds what one generation needs besides weights, and gives it back however it ends."""

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        storage: Storage,
        shape: tuple[int, int, int],
        *,
        debug: bool,
        times: list[UnitTime] | None,
    ) -> None:
        self._runner, self._storage, self._shape = runner, storage, shape
        self._device, self._debug, self._times = runner.device, debug, times
        self._layers = manifest.model.layers
        self._stages = {name: manifest.stage(name) for name in STAGES}
        self._memory: Memory | None = None
        self._begun = False
        self._use = 0
        self._marks: list[tuple[int, Unit, Event, Event]] = []

    def __enter__(self) -> Run:
        tokens = tokens_of(self._shape)
        sizes = {"L": tokens}
        where = run_layout(self._stages.values(), sizes)
        self._begun = True
        try:
            self._runner.prepare(dict.fromkeys(STAGES, sizes))
            self._memory = self._device.allocate(where.nbytes)
            self._tensors = tensors(self._memory, where)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._storage.stream.finish()
                self._tell_times()
        finally:
            self.close()

    def close(self) -> None:
        """End what is under way and give everything back, once."""
        with uninterrupted():
            if not self._begun:
                return
            self._begun = False
            self._storage.stream.stop()
            self._device.finish()
            if self._memory is not None:
                self._memory.free()
            self._runner.release()

    def begin(self, text: npt.NDArray[np.uint16], condition: Array | None, steps: Sequence[Step]) -> None:
        """Upload what no step changes, and start the weights on their way."""
        cos, sin = rope(self._shape)
        self._upload(text=text, cos=cos, sin=sin, **({} if condition is None else {"condition": condition}))
        self._storage.begin([unit for step in steps for unit in self._storage.one_pass(step.expert)])

    def forward(self, tokens: Array, step: Step, noise: Array) -> Array:
        """One step: the DiT and the update. All tokens fp32 [L, 64] on the host."""
        scalars = {name: np.array([getattr(step.update, name)], np.float32) for name in "abc"}
        self._upload(tokens=tokens, noise=noise, time_features=time_features(step.t), **scalars)
        for unit in self._storage.one_pass(step.expert):
            self._run_unit(step, unit)
        return self._download("tokens" + OUTPUT_SUFFIX).view(np.float32).reshape(tokens.shape)

    def located(self, error: NonFiniteError) -> NonFiniteError:
        """The same failure with where it arose: a weight that is not finite, or what still lies on the device."""
        stage, block, weight = error.stage, error.block, self._storage.bad_weight()
        if stage is None and weight is not None:
            kind, _, rest = weight.partition(".")
            stage = {"blocks": "block", "head": "head"}.get(kind, "embed")
            block = int(rest.partition(".")[0]) if stage == "block" else None
        elif stage is None and not all(map(self._finite, ("context", "e", "e0"))):
            stage = "embed"
        elif stage is None:
            stage = "head" if self._finite_tensor(self._turns("x")[self._layers % 2]) else "block"
        return NonFiniteError(error.step, stage, block, weight)

    def _run_unit(self, step: Step, unit: Unit) -> None:
        stage, layer = self._storage.stage_of(unit), unit[1] - 1
        inputs, outputs = self._bound(stage, layer)
        start = self._device.record("compute") if self._times is not None else None
        weights = self._storage.weights(self._use, unit)
        self._runner.run(stage, {**inputs, **weights}, outputs)
        if self._times is not None:
            self._marks.append((step.index, unit, start, self._device.record("compute")))
        self._storage.stream.release(self._use)
        self._use += 1
        if self._debug:
            self._check(step, stage, layer, outputs)

    def _bound(self, stage: str, layer: int) -> tuple[dict[str, DeviceTensor], dict[str, DeviceTensor]]:
        """The stage's activations and outputs: x alternates between two tensors from layer to layer."""
        read = {"embed": 1, "block": layer % 2, "head": self._layers % 2}[stage]
        write = 0 if stage == "embed" else 1 - read
        entry, x = self._stages[stage], self._turns("x")
        named = {**self._tensors, "x": x[read]}
        inputs = {tensor.name: named[tensor.name] for tensor in entry.activations}
        named |= {"x": x[write], "tokens": self._turns("tokens")[1]}
        return inputs, {name: named[name] for name in entry.gives}

    def _turns(self, name: str) -> tuple[DeviceTensor, DeviceTensor]:
        """The two places of a tensor that a stage both takes and gives."""
        return self._tensors[name], self._tensors[name + OUTPUT_SUFFIX]

    def _check(self, step: Step, stage: str, layer: int, outputs: dict[str, DeviceTensor]) -> None:
        if not all(self._finite_tensor(tensor) for tensor in outputs.values()):
            raise NonFiniteError(step.index + 1, stage, layer if stage == "block" else None)

    def _finite(self, name: str) -> bool:
        return self._finite_tensor(self._tensors[name])

    def _finite_tensor(self, tensor: DeviceTensor) -> bool:
        raw = self._bytes(tensor)
        if tensor.place.dtype == "bf16":
            bits = raw.view(np.uint16) & _BF16_EXPONENT
            return not bool((bits == _BF16_EXPONENT).any())
        return bool(np.isfinite(raw.view(np.float32)).all())

    def _upload(self, **arrays: npt.NDArray[np.generic]) -> None:
        for name, array in arrays.items():
            tensor = self._tensors[name]
            source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if source.nbytes != tensor.place.nbytes:
                raise ValueError(f"{name} has {source.nbytes} bytes, its place {tensor.place.nbytes}")
            self._device.upload(tensor.memory, tensor.place.offset, source, "compute")

    def _download(self, name: str) -> npt.NDArray[np.uint8]:
        return self._bytes(self._tensors[name])

    def _bytes(self, tensor: DeviceTensor) -> npt.NDArray[np.uint8]:
        target = np.empty(tensor.place.nbytes, np.uint8)
        self._device.download(tensor.memory, tensor.place.offset, target)
        return target

    def _tell_times(self) -> None:
        if self._times is not None:
            self._times += [
                UnitTime(step, self._storage.stage_of(unit), unit[1], self._device.elapsed(start, end))
                for step, unit, start, end in self._marks
            ]
