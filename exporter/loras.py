"""``--lora FILE_OR_HF_ID[:STRENGTH]`` as typed → which LoRAs change which expert, and how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.models import ModelSpec
from plugins.errors import UserError


@dataclass(frozen=True)
class Lora:
    """A path or Hugging Face id, how strongly it is added, and the experts that it changes."""

    source: str
    strength: float
    experts: tuple[str, ...]


@dataclass(frozen=True)
class Loras:
    """All of an export's. ``partial``: what matches nothing in the model is passed over."""

    items: tuple[Lora, ...] = ()
    partial: bool = False

    def of(self, expert: str) -> tuple[Lora, ...]:
        """Those that change an expert, in the order in which they were given."""
        return tuple(lora for lora in self.items if expert in lora.experts)


NO_LORAS = Loras()


@dataclass(frozen=True)
class LoraArguments:
    """What a command line said: --lora, --lora-high, --lora-low, each any number of times, and --lora-partial."""

    every: tuple[str, ...] = ()
    high: tuple[str, ...] = ()
    low: tuple[str, ...] = ()
    partial: bool = False

    @classmethod
    def typed(
        cls, every: Sequence[str] | None, high: Sequence[str] | None, low: Sequence[str] | None, partial: bool
    ) -> LoraArguments:
        """From options that are None where they were not given."""
        return cls(tuple(every or ()), tuple(high or ()), tuple(low or ()), partial)

    @property
    def given(self) -> tuple[str, ...]:
        """All of them, as they were typed."""
        return (*self.every, *self.high, *self.low)

    def of(self, model: ModelSpec) -> Loras:
        """For the experts of a model. Raises UserError where these or a strength do not fit."""
        if (self.high or self.low) and len(model.experts) == 1:
            raise UserError(
                "--lora-high and --lora-low are for a model of two experts.",
                expected=f"--lora for {model.name}",
                got=", ".join((*self.high, *self.low)),
            )
        given = [(text, model.experts) for text in self.every]
        given += [(text, model.experts[:1]) for text in self.high] + [(text, model.experts[1:]) for text in self.low]
        if self.partial and not given:
            raise UserError("--lora-partial is about LoRAs, and there is none.", remedy="add --lora, or drop it")
        return Loras(tuple(Lora(*parse_lora(text), experts) for text, experts in given), self.partial)


NO_ARGUMENTS = LoraArguments()


def parse_lora(text: str) -> tuple[str, float]:
    """(path or id, strength) of "cat.safetensors:0.8"; 1 where none is said. Raises UserError."""
    source, colon, last = text.rpartition(":")
    try:
        strength = float(last) if colon else 1.0
    except ValueError:  # the colon is the id's or the path's own
        return text, 1.0
    if not colon:
        source = text
    if not source or not math.isfinite(strength):
        raise UserError(
            "A LoRA's strength cannot be used.",
            expected="FILE_OR_HF_ID or FILE_OR_HF_ID:STRENGTH, such as cat.safetensors:0.8",
            got=text,
        )
    return source, strength
