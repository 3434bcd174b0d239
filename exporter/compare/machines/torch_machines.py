"""The machines of torch: the plain fp32 model, the traced stages with their ops answered, and the same unrounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from exporter.checkpoint.reader import Checkpoint
from exporter.compare.machines import plain_model
from exporter.compare.machines.machine import BlockInput, Embedded, EmbedInput, HeadInput, Machine, scalars, watched
from exporter.compare.machines.ops import Evaluate, Intercept, Unrounded, unrounded
from exporter.compare.machines.plain_model import PlainAttention
from exporter.compare.machines.weights import Weights, float_tensor
from exporter.networks.dit import functions as stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.weights import Stage


class PlainMachine(Machine):
    """The fp32 model with the checkpoint's own weights; keeps the key blocks that ``follow`` kept, if given."""

    def __init__(
        self,
        name: str,
        readers: Mapping[str, Checkpoint],
        attention: PlainAttention,
        device: torch.device,
        follow: Machine | None = None,
    ) -> None:
        super().__init__(name, device)
        self._readers, self._attention, self._follow = readers, attention, follow

    @property
    def follows(self) -> bool:
        return self._follow is not None

    def following(self, leader: Machine) -> PlainMachine:
        """The same machine, keeping the key blocks that ``leader`` keeps."""
        return PlainMachine(self.name, self._readers, self._attention, self.device, leader)

    def with_topk(self, topk_milli: int) -> PlainMachine:
        """The same machine with another share of key blocks."""
        return PlainMachine(self.name, self._readers, PlainAttention(topk_milli), self.device)

    def _load(self, expert: str, prefix: str = "") -> Callable[[str], Tensor]:
        return lambda name: float_tensor(self._readers[expert], prefix + name).to(self.device)

    def embed(self, expert: str, given: EmbedInput) -> Embedded:
        with torch.inference_mode():
            args = (given.tokens, given.time_features, given.text, given.condition)
            return Embedded(*plain_model.embed(self._load(expert), *args))

    def block(self, expert: str, layer: int, given: BlockInput) -> Tensor:
        kept = self._follow.selections[layer].to(self.device) if self._follow else None
        with torch.inference_mode():
            load = self._load(expert, f"blocks.{layer}.")
            args = (given.x.float(), given.context.float(), given.e0, given.cos, given.sin)
            return plain_model.block(load, *args, self._attention, kept)

    def head(self, expert: str, given: HeadInput) -> tuple[Tensor, Tensor]:
        update = given.update
        with torch.inference_mode():
            v = plain_model.head(self._load(expert), given.x.float(), given.e)
            return update.a * given.tokens + update.b * v + update.c * given.noise, v


class StageMachine(Machine):
    """The stage functions that are traced, their ops answered by ``evaluate``."""

    def __init__(
        self, name: str, weights: Weights, options: BlockOptions, evaluate: Evaluate, device: torch.device
    ) -> None:
        super().__init__(name, device)
        self.options = options
        self._weights, self._evaluate = weights, evaluate

    @property
    def evaluate(self) -> Evaluate:
        return self._evaluate

    def with_options(self, options: BlockOptions, evaluate: Evaluate | None = None) -> StageMachine:
        """The same machine with other options, and its ops answered by another evaluation if given."""
        return StageMachine(self.name, self._weights, options, evaluate or self._evaluate, self.device)

    def weights(self, expert: str, stage: Stage, layer: int = 0) -> dict[str, Tensor]:
        """A stage's weights on the device."""
        return {name: tensor.to(self.device) for name, tensor in self._weights(expert, stage, layer).items()}

    def residual(self, x: Tensor) -> Tensor:
        """The residual stream as this machine carries it."""
        return x.bfloat16()

    def _around(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _run(self, names: Mapping[str, Tensor], evaluate: Evaluate, function: Callable[..., Any], *args: Any) -> Any:
        with torch.inference_mode(), self._around(), Intercept(evaluate, names):
            return function(*args)

    def embed(self, expert: str, given: EmbedInput) -> Embedded:
        weights = self.weights(expert, "embed")
        args = (given.tokens, given.time_features, given.text, weights, given.condition)
        return Embedded(*self._run(weights, self._evaluate, stages.embed, *args))

    def block(self, expert: str, layer: int, given: BlockInput) -> Tensor:
        return self.block_by(self._evaluate, expert, layer, given)

    def block_by(self, evaluate: Evaluate, expert: str, layer: int, given: BlockInput) -> Tensor:
        """``block`` with the ops answered by another evaluation."""
        return self.loaded_block(expert, layer, given, watched(self, layer, evaluate))()

    def loaded_block(
        self, expert: str, layer: int, given: BlockInput, evaluate: Evaluate | None = None
    ) -> Callable[[], Tensor]:
        """The block with its weights loaded: run it as often as wanted."""
        weights = self.weights(expert, "block", layer)
        x, context = self.residual(given.x), self.residual(given.context)
        names = {"x": x, "context": context, **weights}
        args = (x, context, given.e0, given.cos, given.sin, weights, self.options)
        return lambda: self._run(names, evaluate or self._evaluate, stages.block, *args)

    def head(self, expert: str, given: HeadInput) -> tuple[Tensor, Tensor]:
        weights = self.weights(expert, "head")
        args = (self.residual(given.x), given.e, given.tokens, given.noise, *scalars(given.update, self.device))
        tokens, v = self._run(weights, self._evaluate, stages.head, *args, weights)
        return tokens, v


class UnroundedMachine(StageMachine):
    """The same stages and ops with nothing rounded and the checkpoint's weights in fp32: what each op approximates."""

    def __init__(self, name: str, weights: Weights, options: BlockOptions, device: torch.device) -> None:
        super().__init__(name, weights, options, unrounded, device)

    def _around(self) -> AbstractContextManager[Any]:
        return Unrounded()

    def residual(self, x: Tensor) -> Tensor:
        return x.float()
