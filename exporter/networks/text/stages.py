"""The text encoder's stages: its block, run once a layer, and its norm. The embedding is looked up on the host."""

from __future__ import annotations

from functools import partial

from exporter.networks.stage_spec import StageSpec, StageTensor
from exporter.networks.text.encoder import TextSpec, block_weights, norm_weights, text_block, text_norm
from exporter.networks.weight_spec import LinearMode

_PROFILE = (2, 64, 512)  # tokens of a prompt: a word and the end mark, a usual prompt, the most


def text_stages(spec: TextSpec, linear: LinearMode = "bf16") -> tuple[StageSpec, ...]:
    """The block and the norm behind the last one."""
    x = StageTensor("fp32", ("L", spec.dim))
    return (
        StageSpec(
            name="text_block",
            component="text",
            inputs={"x": x, "buckets": StageTensor("int32", ("L", "L"))},
            weights=block_weights(spec, linear),
            outputs={"x": x},
            function=partial(text_block, spec=spec, linear=linear),
            profile=_PROFILE,
            choices={"text_linear": linear},
            plans=linear == "int8",
        ),
        StageSpec(
            name="text_norm",
            component="text",
            inputs={"x": x},
            weights=norm_weights(spec),
            outputs={"embeds": StageTensor("bf16", x.dims)},
            function=text_norm,
            profile=_PROFILE,
        ),
    )
