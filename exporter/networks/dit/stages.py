"""The DiT's stages: what embed, block and head take and give."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, get_args

from exporter.models import FREQ_DIM, TEXT_DIM, TEXT_LENGTH, ModelSpec
from exporter.networks.dit import functions as stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.weights import Stage, stage_weights
from exporter.networks.stage_spec import StageInput, StageSpec

L = "L"
MIN_TOKENS = 16


def activation_inputs(model: ModelSpec, stage: Stage) -> dict[str, StageInput]:
    """A stage's inputs other than weights, in order."""
    d, state = model.dim, StageInput("fp32", (L, 64))
    if stage == "embed":
        inputs = {
            "tokens": state,
            "time_features": StageInput("fp32", (1, FREQ_DIM)),
            "text": StageInput("bf16", (TEXT_LENGTH, TEXT_DIM)),
        }
        condition = StageInput("fp32", (L, model.patch_features - 64))
        return inputs | ({"condition": condition} if model.image_to_video else {})
    x = StageInput("bf16", (L, d))
    if stage == "block":
        angle = StageInput("fp32", (L, 64))
        return {
            "x": x,
            "context": StageInput("bf16", (TEXT_LENGTH, d)),
            "e0": StageInput("fp32", (6, d)),
            "cos": angle,
            "sin": angle,
        }
    scalar = StageInput("fp32", (1,))
    e = StageInput("fp32", (1, d))
    return {"x": x, "e": e, "tokens": state, "noise": state, "a": scalar, "b": scalar, "c": scalar}


OUTPUTS: dict[Stage, tuple[str, ...]] = {
    "embed": ("x", "context", "e", "e0"),
    "block": ("x",),
    "head": ("tokens", "v"),
}


@cache
def stage_function(stage: Stage, options: BlockOptions) -> Callable[..., Any]:
    """The stage as a function of its activation inputs, in order, and the mapping of weights."""
    if stage == "embed":
        return lambda tokens, time_features, text, *rest: stages.embed(
            tokens, time_features, text, rest[-1], *rest[:-1]
        )
    if stage == "block":
        return lambda x, context, e0, cos, sin, weights: stages.block(x, context, e0, cos, sin, weights, options)
    return stages.head


def dit_stage(model: ModelSpec, stage: Stage, options: BlockOptions) -> StageSpec:
    """One of the DiT's stages. The middle of the profile is the model's default size: TensorRT tunes for it."""
    return StageSpec(
        name=stage,
        component="dit",
        inputs=activation_inputs(model, stage),
        weights=stage_weights(model, stage, options.linear),
        outputs=OUTPUTS[stage],
        function=stage_function(stage, options),
        profile=(MIN_TOKENS, model.tokens(), model.max_tokens),
    )


DIT_STAGES: tuple[Stage, ...] = get_args(Stage)
