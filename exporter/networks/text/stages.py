"""The text encoder's stages: its block, run once a layer, and its norm."""

from __future__ import annotations

from torch import Tensor

from exporter.networks.stage_spec import StageInput, StageSpec
from exporter.networks.text.encoder import TextSpec, block_weights, norm_weights, text_block, text_norm
from exporter.networks.vae.layers import Weights
from exporter.networks.weight_spec import LinearMode

_TEXT_PROFILE = (2, 64, 512)  # tokens of a prompt: a word and the end mark, a usual prompt, the most


def text_stages(spec: TextSpec, linear: LinearMode = "bf16") -> tuple[StageSpec, ...]:
    """The encoder's block, run once for each layer, and its norm. The embedding is looked up on the host."""
    x = StageInput("fp32", ("L", spec.dim))
    buckets = StageInput("int32", ("L", "L"))

    def block(x: Tensor, buckets: Tensor, weights: Weights) -> Tensor:
        return text_block(x, buckets, weights, spec, linear)

    return (
        StageSpec(
            "text_block",
            "text",
            {"x": x, "buckets": buckets},
            block_weights(spec, linear),
            ("x",),
            block,
            _TEXT_PROFILE,
        ),
        StageSpec("text_norm", "text", {"x": x}, norm_weights(spec), ("embeds",), text_norm, _TEXT_PROFILE),
    )
