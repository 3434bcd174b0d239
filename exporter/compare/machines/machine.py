"""A machine: one way to compute a DiT's three stages. Which there are: torch_machines, onnx_machine, engine_machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from exporter.compare.machines.ops import Call, Evaluate, Outputs
from exporter.compare.scene import Scene
from exporter.networks.dit.weights import Stage
from runtime.numerics import Update

TOPK = "topk_milli"  # an op with this attribute chooses key blocks, from inputs named q and k


@dataclass(frozen=True)
class EmbedInput:
    """tokens fp32 [L, 64], time_features fp32 [1, 256], text bf16 [512, 4096], condition fp32 [L, 80] or None."""

    tokens: Tensor
    time_features: Tensor
    text: Tensor
    condition: Tensor | None


@dataclass(frozen=True)
class Embedded:
    """What embed gives the blocks: x [L, D], context [512, D], e fp32 [1, D], e0 fp32 [6, D]."""

    x: Tensor
    context: Tensor
    e: Tensor
    e0: Tensor


@dataclass(frozen=True)
class BlockInput:
    """x [L, D], context [512, D], e0 fp32 [6, D], cos and sin fp32 [L, 64]; x and context in any float dtype."""

    x: Tensor
    context: Tensor
    e0: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class HeadInput:
    """x [L, D], e fp32 [1, D], tokens and noise fp32 [L, 64], and the rCM update."""

    x: Tensor
    e: Tensor
    tokens: Tensor
    noise: Tensor
    update: Update


_T = TypeVar("_T", EmbedInput, BlockInput, HeadInput)


def moved(given: _T, device: torch.device) -> _T:
    """The same input with its tensors on the device."""
    values: dict[str, Any] = {field.name: getattr(given, field.name) for field in fields(given)}
    return type(given)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


class Machine(ABC):
    """Takes and gives tensors on its own device; loads a stage's weights for the time of the call.

    ``selections`` holds each layer's kept key blocks where ``record_selections`` is on.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.record_selections = False
        self.selections: dict[int, Tensor] = {}

    @property
    def follows(self) -> bool:
        """Whether it keeps the key blocks of another machine, which must then run first."""
        return False

    @abstractmethod
    def embed(self, expert: str, given: EmbedInput) -> Embedded: ...

    @abstractmethod
    def block(self, expert: str, layer: int, given: BlockInput) -> Tensor: ...

    @abstractmethod
    def head(self, expert: str, given: HeadInput) -> tuple[Tensor, Tensor]:
        """The following tokens and v, fp32 [L, 64]."""

    def close(self) -> None:  # noqa: B027 (most machines hold nothing)
        """Give back what the machine holds."""


def scalars(update: Update, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The update's a, b and c as the head takes them, fp32 [1]."""
    a, b, c = (torch.tensor([value], dtype=torch.float32, device=device) for value in (update.a, update.b, update.c))
    return a, b, c


def block_feed(given: BlockInput) -> dict[str, Tensor]:
    """The block's inputs other than weights, by the names and dtypes of its graph."""
    x, context = given.x.bfloat16(), given.context.bfloat16()
    return {"x": x, "context": context, "e0": given.e0, "cos": given.cos, "sin": given.sin}


class GraphMachine(Machine):
    """Its stages are graphs whose weights are inputs; ``_run`` answers one, by the names and dtypes of the graph."""

    @abstractmethod
    def _run(self, stage: Stage, expert: str, feed: Mapping[str, Tensor], layer: int = 0) -> tuple[Tensor, ...]: ...

    def embed(self, expert: str, given: EmbedInput) -> Embedded:
        feed = {"tokens": given.tokens, "time_features": given.time_features, "text": given.text}
        if given.condition is not None:
            feed["condition"] = given.condition
        return Embedded(*self._run("embed", expert, feed))

    def block(self, expert: str, layer: int, given: BlockInput) -> Tensor:
        return self._run("block", expert, block_feed(given), layer)[0]

    def head(self, expert: str, given: HeadInput) -> tuple[Tensor, Tensor]:
        a, b, c = scalars(given.update, self.device)
        feed = {"x": given.x.bfloat16(), "e": given.e, "tokens": given.tokens, "noise": given.noise}
        tokens, v = self._run("head", expert, {**feed, "a": a, "b": b, "c": c})
        return tokens, v


class OpMachine(Protocol):
    """A machine whose ops can be seen one by one."""

    name: str
    device: torch.device

    @property
    def evaluate(self) -> Evaluate:
        """How it answers its ops."""

    def block_by(self, evaluate: Evaluate, expert: str, layer: int, given: BlockInput) -> Tensor:
        """``block`` with the ops answered by another evaluation."""


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


def embedded(machine: Machine, scene: Scene, step: int, tokens: Tensor) -> Embedded:
    """What the machine's embed makes of a step's tokens, on its device."""
    given = EmbedInput(tokens, scene.time_features(step), scene.text, scene.condition)
    return machine.embed(scene.steps[step].expert, moved(given, machine.device))


def forward(machine: Machine, layers: int, scene: Scene, step: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One rCM step: the following tokens and v, fp32 [L, 64]."""
    at = scene.steps[step]
    made = embedded(machine, scene, step, tokens)
    cos, sin = (table.to(machine.device) for table in scene.tables())
    x = made.x
    for layer in range(layers):
        x = machine.block(at.expert, layer, BlockInput(x, made.context, made.e0, cos, sin))
    given = HeadInput(x, made.e, tokens, scene.noise_of(step), at.update)
    return machine.head(at.expert, moved(given, machine.device))


def run_free(machine: Machine, layers: int, scene: Scene) -> Tensor:
    """All rCM steps, each from the last one's tokens; the last tokens, fp32 [L, 64] on the host."""
    tokens = scene.start
    for step in range(len(scene.steps)):
        tokens, _ = forward(machine, layers, scene, step, tokens)
    return tokens.cpu()
