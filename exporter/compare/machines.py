"""The ways to compute a DiT's three stages that are compared: plain fp32, stages with references, ONNX, plans, engines.

A machine takes and gives tensors on its own device and loads a stage's weights for the time of the call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from exporter import stages
from exporter.checkpoint.reader import Checkpoint
from exporter.compare import plain_model
from exporter.compare.ops import Call, Evaluate, Intercept, Outputs, Unrounded, unrounded
from exporter.compare.plain_model import PlainAttention
from exporter.compare.weights import Weights, float_tensor
from exporter.stages import BlockOptions
from exporter.weights import Stage
from runtime.numerics import Update

TOPK = "topk_milli"  # an op with this attribute chooses key blocks, from inputs named q and k


@dataclass(frozen=True)
class Embedded:
    """What embed gives the blocks: x [L, D], context [512, D], e fp32 [1, D], e0 fp32 [6, D]."""

    x: Tensor
    context: Tensor
    e: Tensor
    e0: Tensor


class Machine(ABC):
    """One way to compute the stages. ``selections`` holds each layer's kept blocks where ``record_selections`` is on."""

    name: str
    device: torch.device

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.record_selections = False
        self.selections: dict[int, Tensor] = {}

    @property
    def follows(self) -> bool:
        """Whether it keeps the key blocks of another machine, which must then run first."""
        return False

    @abstractmethod
    def embed(
        self, expert: str, tokens: Tensor, time_features: Tensor, text: Tensor, condition: Tensor | None
    ) -> Embedded: ...

    @abstractmethod
    def block(
        self, expert: str, layer: int, x: Tensor, context: Tensor, e0: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor: ...

    @abstractmethod
    def head(
        self, expert: str, x: Tensor, e: Tensor, tokens: Tensor, noise: Tensor, update: Update
    ) -> tuple[Tensor, Tensor]:
        """The following tokens and v, fp32 [L, 64]."""

    def close(self) -> None:  # noqa: B027 (most machines hold nothing)
        """Give back what the machine holds."""


class OpMachine(Protocol):
    """A machine whose ops can be seen one by one."""

    name: str
    device: torch.device

    @property
    def evaluate(self) -> Evaluate: ...

    def block_by(
        self, evaluate: Evaluate, expert: str, layer: int, x: Tensor, context: Tensor, e0: Tensor, cos: Tensor,
        sin: Tensor,
    ) -> Tensor: ...  # fmt: skip


class PlainMachine(Machine):
    """The fp32 model with the checkpoint's own weights; selects the key blocks that ``follow`` did, if given."""

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

    def embed(self, expert, tokens, time_features, text, condition):  # type: ignore[no-untyped-def]
        with torch.inference_mode():
            return Embedded(*plain_model.embed(self._load(expert), tokens, time_features, text, condition))

    def block(self, expert, layer, x, context, e0, cos, sin):  # type: ignore[no-untyped-def]
        kept = self._follow.selections[layer].to(self.device) if self._follow else None
        with torch.inference_mode():
            load = self._load(expert, f"blocks.{layer}.")
            return plain_model.block(load, x.float(), context.float(), e0, cos, sin, self._attention, kept)

    def head(self, expert, x, e, tokens, noise, update):  # type: ignore[no-untyped-def]
        with torch.inference_mode():
            v = plain_model.head(self._load(expert), x.float(), e)
            return update.a * tokens + update.b * v + update.c * noise, v


class StageMachine(Machine):
    """The stage functions that are traced, their ops answered by ``evaluate``."""

    def __init__(
        self, name: str, weights: Weights, options: BlockOptions, evaluate: Evaluate, device: torch.device
    ) -> None:
        super().__init__(name, device)
        self.options = options
        self._weights, self._evaluate = weights, evaluate

    def with_options(self, options: BlockOptions, evaluate: Evaluate | None = None) -> StageMachine:
        """The same machine with other options, and its ops answered by another evaluation if given."""
        return StageMachine(self.name, self._weights, options, evaluate or self._evaluate, self.device)

    def weights(self, expert: str, stage: Stage, layer: int = 0) -> dict[str, Tensor]:
        """A stage's weights on the device."""
        return {name: tensor.to(self.device) for name, tensor in self._weights(expert, stage, layer).items()}

    def _around(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _run(self, names: dict[str, Tensor], evaluate: Evaluate, function: Callable[..., Any], *args: Any) -> Any:
        with torch.inference_mode(), self._around(), Intercept(evaluate, names):
            return function(*args)

    def embed(self, expert, tokens, time_features, text, condition):  # type: ignore[no-untyped-def]
        weights = self.weights(expert, "embed")
        args = (tokens, time_features, text, weights, condition)
        return Embedded(*self._run(weights, self._evaluate, stages.embed, *args))

    def block(self, expert, layer, x, context, e0, cos, sin):  # type: ignore[no-untyped-def]
        return self.block_by(self._evaluate, expert, layer, x, context, e0, cos, sin)

    def block_by(
        self, evaluate: Evaluate, expert: str, layer: int, x: Tensor, context: Tensor, e0: Tensor, cos: Tensor,
        sin: Tensor,
    ) -> Tensor:  # fmt: skip
        """``block`` with the ops answered by another evaluation."""
        weights = self.weights(expert, "block", layer)
        x, context = self.residual(x), self.residual(context)
        names = {"x": x, "context": context, **weights}
        out: Tensor = self._run(names, watched(self, layer, evaluate), stages.block, x, context, e0, cos, sin, weights, self.options)
        return out

    def loaded_block(
        self, expert: str, layer: int, made: Embedded, cos: Tensor, sin: Tensor
    ) -> Callable[[], Tensor]:
        """The block with its weights loaded, to be timed."""
        weights = self.weights(expert, "block", layer)
        x, context = self.residual(made.x), self.residual(made.context)
        args = (x, context, made.e0, cos, sin, weights, self.options)
        return lambda: self._run({}, self._evaluate, stages.block, *args)

    @property
    def evaluate(self) -> Evaluate:
        return self._evaluate

    def residual(self, x: Tensor) -> Tensor:
        """The residual stream as this machine carries it."""
        return x.bfloat16()

    def head(self, expert, x, e, tokens, noise, update):  # type: ignore[no-untyped-def]
        weights = self.weights(expert, "head")
        a, b, c = (torch.tensor([value], dtype=torch.float32, device=self.device) for value in _scalars(update))
        args = (self.residual(x), e, tokens, noise, a, b, c, weights)
        return self._run(weights, self._evaluate, stages.head, *args)


class UnroundedMachine(StageMachine):
    """The same stages and ops with nothing rounded and the checkpoint's weights in fp32: what each op approximates."""

    def __init__(self, name: str, weights: Weights, options: BlockOptions, device: torch.device) -> None:
        super().__init__(name, weights, options, unrounded, device)

    def _around(self) -> AbstractContextManager[Any]:
        return Unrounded()

    def residual(self, x: Tensor) -> Tensor:
        return x.float()


def watched(machine: Machine, layer: int, evaluate: Evaluate) -> Evaluate:
    """``evaluate``, noting which key blocks the layer's attention keeps where the machine records them."""

    def evaluated(call: Call) -> Outputs:
        if machine.record_selections and TOPK in call.attributes:
            machine.selections[layer] = selection(call)
        return evaluate(call)

    return evaluated


def selection(call: Call) -> Tensor:
    """The key blocks an attention op keeps by the oracle's rule, int64 [H, nq, K]."""
    from plugins.sage_sla.reference import kept_blocks

    named = dict(zip((tensor.name for tensor in call.op.inputs), call.inputs, strict=True))
    return kept_blocks(named["q"], named["k"], int(call.attributes[TOPK]))


def _scalars(update: Update) -> tuple[float, float, float]:
    return update.a, update.b, update.c


def forward(
    machine: Machine, layers: int, expert: str, tokens: Tensor, time_features: Tensor, text: Tensor,
    condition: Tensor | None, cos: Tensor, sin: Tensor, noise: Tensor, update: Update,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One rCM step: the following tokens and v, fp32 [L, 64]."""
    taken = [t if t is None else t.to(machine.device) for t in (tokens, time_features, text, condition, cos, sin, noise)]
    tokens, time_features, text, condition, cos, sin, noise = taken  # type: ignore[assignment]
    made = machine.embed(expert, tokens, time_features, text, condition)
    x = made.x
    for layer in range(layers):
        x = machine.block(expert, layer, x, made.context, made.e0, cos, sin)
    return machine.head(expert, x, made.e, tokens, noise, update)
