"""The text encoder's part of ``turbotrt bench media``: umT5 on a prompt of 60 tokens, beside transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from exporter.bench.stopwatch import Stopwatch, compare, opened
from exporter.bench.synthetic import random_weights
from exporter.checkpoint.text_names import text_name, text_sources
from exporter.models import ModelSpec
from exporter.networks.text.encoder import TEXT_ENCODERS, TextSpec, block_weights, text_block, text_norm, text_weights
from plugins.torch_dtypes import torch_dtype
from runtime.media.text.relative_position import relative_buckets

TOKENS, PADDED = 60, 512


def transformers_encoder(spec: TextSpec, device: torch.device) -> Any:
    """UMT5EncoderModel in bf16 with random weights. Raises ImportError."""
    import transformers

    config = transformers.UMT5Config(
        vocab_size=spec.vocabulary,
        d_model=spec.dim,
        d_kv=spec.head_dim,
        d_ff=spec.ffn_dim,
        num_layers=spec.layers,
        num_heads=spec.heads,
    )
    with torch.device(device):
        torch.manual_seed(0)
        return transformers.UMT5EncoderModel(config).to(torch.bfloat16).eval()


def bench_text(model: ModelSpec, watch: Stopwatch) -> None:
    """transformers pads to 512 tokens, as pipelines call it, and for the sake of fairness also does not."""
    spec, device = TEXT_ENCODERS[model.text_encoder], watch.device
    table = text_weights(spec)
    oracle, why = opened(partial(transformers_encoder, spec, device))
    if oracle is None:
        weights = random_weights(table, 0, str(device))
    else:
        state = {text_name(name): tensor for name, tensor in oracle.state_dict().items()}
        weights = {
            name: torch.cat([state[source] for source in text_sources(name)]).to(torch_dtype(one.dtype))
            for name, one in table.items()
        }
    tokens = torch.arange(3, 3 + TOKENS, device=device) % spec.vocabulary
    buckets = torch.from_numpy(relative_buckets(TOKENS)).to(device)
    layers = [{key: weights[f"blocks.{n}.{key}"] for key in block_weights(spec)} for n in range(spec.layers)]

    def ours() -> torch.Tensor:
        with torch.no_grad():
            x = weights["token_embedding.weight"][tokens].float()
            for own in layers:
                x = text_block(x, buckets, own, spec)
            return text_norm(x, weights)

    def theirs(length: int) -> torch.Tensor:
        ids = torch.zeros(1, length, dtype=torch.long, device=device)
        ids[0, :TOKENS] = tokens
        mask = (torch.arange(length, device=device) < TOKENS).long()[None]
        with torch.no_grad():
            found: torch.Tensor = oracle(ids, attention_mask=mask).last_hidden_state[0, :TOKENS]
        return found

    for length in (PADDED, TOKENS):
        task = f"umT5, {TOKENS} tokens" + (f" (transformers: {PADDED})" if length == PADDED else "")
        given = None if oracle is None else lambda length=length: theirs(length)
        compare(watch, task, [("ours", ours)], "transformers", given, why)
