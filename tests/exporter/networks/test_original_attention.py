"""--attention original: softmax over every key in bf16, as the models were pretrained, with no INT8 in it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from exporter.bench.block_graph import block_calls
from exporter.models import MODELS
from exporter.networks.dit.functions import _attend
from exporter.networks.dit.options import BARE, DENSE, BlockOptions
from exporter.networks.weight_spec import LinearMode
from exporter.packing.quantize import block_dequantize

TINY = MODELS["wan-tiny"]
LENGTH, D = 200, TINY.dim


@pytest.fixture(scope="module")
def qkv() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(LENGTH, D, generator=generator).bfloat16() for _ in range(3)]


@pytest.fixture(scope="module")
def exact(qkv: list[torch.Tensor]) -> torch.Tensor:
    """torch's own attention in fp64: heads of 128, scale 1/√128."""
    heads = [x.double().view(LENGTH, -1, 128).transpose(0, 1)[None] for x in qkv]
    return F.scaled_dot_product_attention(*heads)[0].transpose(0, 1).reshape(LENGTH, D)


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def test_it_is_softmax_attention(qkv: list[torch.Tensor], exact: torch.Tensor) -> None:
    """proj_l and top-k have no part in it: there are no weights to take one from."""
    q, k, v = qkv
    assert error(_attend(q, k, v, {}, BlockOptions("original")), exact) <= 5e-3  # bf16's rounding


def test_its_output_is_quantized_for_int8_linears(qkv: list[torch.Tensor], exact: torch.Tensor) -> None:
    q, k, v = qkv
    o, scale = _attend(q, k, v, {}, BlockOptions("original"), "Quantize")
    assert error(block_dequantize(o, scale), exact) <= 2e-2


@pytest.mark.parametrize("linear", ["int8", "bf16"])
def test_no_attention_of_the_block_is_int8(linear: LinearMode) -> None:
    calls = block_calls(TINY, BlockOptions("original", 100, linear), LENGTH)
    attention = {call.op.name: dict(call.attributes) for call in calls if "Attention" in call.op.name}
    assert list(attention) == ["SageAttention" + ("Quantize" if linear == "int8" else "")]
    assert all(attributes == {"precision": "bf16"} for attributes in attention.values())
    assert not any("SLA" in call.op.name for call in calls)


def test_which_are_dense_and_which_need_no_proj_l() -> None:
    assert {"sage", "original"} == DENSE
    assert {"sage", "original", "sla"} == BARE
