"""Teacher forcing: each of our blocks gets the reference's state, and its output is compared with the reference's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from exporter.bench.block_graph import block_graph, our_op
from exporter.bench.kernels import run_graph
from exporter.bench.synthetic import block_inputs, block_weights
from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from plugins.sage_sla.reference import kept_blocks
from tests.support.plain_block import Weights, plain_block


@dataclass(frozen=True)
class BlockError:
    """Relative L2 of one block: ``forced`` of its output given the reference's input, ``update`` of what the block adds
    to x, ``free`` of its output where our own state is carried on."""

    forced: float
    update: float
    free: float


class CapturingInterpreter(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs a block's graph and keeps the q and k that sparse attention got."""

    queries_keys: tuple[torch.Tensor, torch.Tensor]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (op := our_op(target)) is not None and op.folder == "sage_sla":
            named = {tensor.name: value for tensor, value in zip(op.inputs, args, strict=False)}
            self.queries_keys = named["q"], named["k"]
        return super().call_function(target, args, kwargs)


def biting_weights(model: ModelSpec, options: BlockOptions, seed: int, device: str) -> Weights:
    """Random weights with open gates and peaked attention: whatever a block leaves out shows in its output."""
    weights = block_weights(model, options, seed, device)
    weights["modulation"][2::3] += 0.5
    for name in ("self_attn", "cross_attn"):
        weights[f"{name}.norm_q.weight"] *= 2.0
    return weights


def relative(got: torch.Tensor, want: torch.Tensor, against: torch.Tensor | None = None) -> float:
    """‖got − want‖ / ‖against‖, the latter want by default."""
    return float((got.float() - want).norm() / (want if against is None else against).norm())


def forced_errors(
    model: ModelSpec, shape: tuple[int, int, int], layers: Iterable[int], step: int, device: str
) -> list[BlockError]:
    """Errors of these layers of one step. The reference keeps the key blocks that the oracle finds in our q and k."""
    options = BlockOptions()
    x, context, e0, cos, sin = block_inputs(model, 1000 + step, device, shape)
    rest = (context, e0, cos, sin)
    ours = CapturingInterpreter(block_graph(model, options, x.shape[0]))
    state, free, found = x.float(), x, []
    with torch.inference_mode():
        for layer in layers:
            weights = biting_weights(model, options, layer, device)
            given = state.bfloat16()
            free = run_graph(ours, [free, *rest], weights)
            got = run_graph(ours, [given, *rest], weights)
            kept = kept_blocks(*ours.queries_keys, options.topk_milli)
            del ours.queries_keys
            state = plain_block(given, *rest, weights, kept)
            added = state - given.float()
            found.append(BlockError(relative(got, state), relative(got, state, added), relative(free, state)))
    return found
