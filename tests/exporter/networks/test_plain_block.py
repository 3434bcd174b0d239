"""The fp32 block that the GPU accuracy tests measure against, itself checked against the stage on the CPU oracles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from exporter.bench.synthetic import block_inputs
from exporter.models import MODELS
from exporter.networks.dit.functions import block
from exporter.networks.dit.options import BlockOptions
from plugins.sage_sla.op import kept_count
from tests.support.forced import biting_weights, forced_errors, relative
from tests.support.plain_block import plain_block

TINY = replace(MODELS["wan-tiny"], name="wan-tiny-forced")
SHAPE = (5, 10, 16)  # latent T, H, W: 200 tokens


def test_forced_blocks_are_within_the_bound_with_the_ops_references() -> None:
    errors = forced_errors(TINY, SHAPE, range(3), 0, "cpu")
    assert len(errors) == 3
    assert all(0 < error.forced <= 2e-2 for error in errors), errors
    assert all(error.free >= error.forced / 2 and error.update >= error.forced for error in errors), errors
    assert errors[2].free > errors[0].free, "our own state drifts"


@pytest.mark.parametrize("part", ["self_attn.o.int8_weight", "cross_attn.o.int8_weight", "self_attn.proj_l.weight"])
def test_the_bound_bites(part: str) -> None:
    """Leaving out a part of the block moves its output by more than the bound allows."""
    options = BlockOptions(topk_milli=500)
    x, context, e0, cos, sin = block_inputs(TINY, 0, "cpu", SHAPE)
    inputs, weights = (x, context, e0, cos, sin), biting_weights(TINY, options, 0, "cpu")
    kept = torch.arange(kept_count(4, 500)).expand(TINY.heads, 2, -1)
    whole = plain_block(*inputs, weights, kept)
    without = plain_block(*inputs, weights | {part: torch.zeros_like(weights[part])}, kept)
    assert relative(without, whole) > 2e-2


def test_plain_block_is_the_stage_where_every_block_is_kept() -> None:
    options = BlockOptions(topk_milli=1000)
    x, context, e0, cos, sin = block_inputs(TINY, 0, "cpu", SHAPE)
    inputs, weights = (x, context, e0, cos, sin), biting_weights(TINY, options, 0, "cpu")
    kept = torch.arange(4).expand(TINY.heads, 2, -1)
    ours, plain = block(*inputs, weights, options), plain_block(*inputs, weights, kept)
    assert relative(ours, plain) <= 2e-2
