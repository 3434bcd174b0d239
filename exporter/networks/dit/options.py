"""What can be chosen of a block: its attention and its Linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from exporter.networks.weight_spec import LinearMode

Attention = Literal["sagesla", "sla", "sage"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)


@dataclass(frozen=True)
class BlockOptions:
    """How a block computes attention and Linears."""

    attention: Attention = "sagesla"
    topk_milli: int = 100
    linear: LinearMode = "int8"
