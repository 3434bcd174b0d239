"""What can be chosen of a block: its attention and its Linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from exporter.networks.weight_spec import LinearMode
from runtime.bundle import DENSE, Attention

__all__ = ["ATTENTIONS", "BARE", "DENSE", "Attention", "BlockOptions"]

ATTENTIONS: tuple[str, ...] = get_args(Attention)
#: Those that a checkpoint without proj_l will do for: its linear branch is then zero, or not there.
BARE: frozenset[Attention] = DENSE | {"sla"}


@dataclass(frozen=True)
class BlockOptions:
    """How a block computes attention and Linears."""

    attention: Attention = "sagesla"
    topk_milli: int = 100
    linear: LinearMode = "int8"
