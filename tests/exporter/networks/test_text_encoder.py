"""umT5's encoder against transformers' (random weights, fp32), with the padding that we leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from exporter.checkpoint.text_names import text_name, text_sources
from exporter.networks.text.encoder import TextSpec, text_block, text_norm, text_weights
from runtime.media.text.relative_position import relative_buckets

SPEC = TextSpec(name="test", dim=64, layers=3, ffn_dim=96, heads=4, head_dim=8, vocabulary=100)


@pytest.fixture(scope="module")
def oracle() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=SPEC.vocabulary,
        d_model=SPEC.dim,
        d_kv=SPEC.head_dim,
        d_ff=SPEC.ffn_dim,
        num_layers=SPEC.layers,
        num_heads=SPEC.heads,
        attn_implementation="eager",
    )
    model = transformers.UMT5EncoderModel(config).eval()
    with torch.no_grad():  # the fresh initialization is too small for scores to matter
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else torch.randn_like(parameter) * 0.3)
    return model


def packed(oracle: Any) -> dict[str, torch.Tensor]:
    """The packed tensors in fp32."""
    state = {}
    for name, tensor in oracle.state_dict().items():
        state[text_name(name)] = tensor
    return {name: torch.cat([state[source] for source in text_sources(name)]) for name in text_weights(SPEC)}


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 150])
def test_encoder(oracle: Any, length: int) -> None:
    tokens = torch.randint(1, SPEC.vocabulary, (1, length), generator=torch.Generator().manual_seed(length))
    padded = torch.nn.functional.pad(tokens, (0, 9))
    mask = (torch.arange(length + 9) < length).long()[None]
    want = oracle(padded, attention_mask=mask).last_hidden_state[0, :length]
    weights = packed(oracle)
    x = weights["token_embedding.weight"][tokens[0]]
    buckets = torch.from_numpy(relative_buckets(length))
    for layer in range(SPEC.layers):
        prefix = f"blocks.{layer}."
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        x = text_block(x, buckets, own, SPEC)
    # the norm ends in bf16: compare before it, by the same formula
    got = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weights["norm.weight"]
    assert float((got - want).norm() / want.norm()) < 1e-5
    rounded = text_norm(x, weights)
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - want).norm() / want.norm()) < 4e-3


def test_buckets_are_transformers(oracle: Any) -> None:
    attention = oracle.encoder.block[0].layer[0].SelfAttention
    offset = torch.arange(512)[None, :] - torch.arange(512)[:, None]
    want = attention._relative_position_bucket(offset).numpy()
    assert np.array_equal(relative_buckets(512), want)
