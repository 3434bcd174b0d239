"""The DiT's stages: what embed, block and head take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor

from exporter.models import FREQ_DIM, OUT_CHANNELS, TEXT_DIM, TEXT_LENGTH, ModelSpec
from exporter.networks.dit import functions
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.weights import Stage, stage_weights
from exporter.networks.stage_spec import StageSpec, StageTensor

MIN_TOKENS = 16
_TOKEN = OUT_CHANNELS * 4  # features of one token's latents
_STATE = StageTensor("fp32", ("L", _TOKEN))
_SCALAR = StageTensor("fp32", (1,))


def dit_stages(model: ModelSpec, options: BlockOptions) -> tuple[StageSpec, ...]:
    """embed, block and head. The middle of the profile is the model's default size: TensorRT tunes for it."""
    return embed_stage(model, options), block_stage(model, options), head_stage(model, options)


def embed_stage(model: ModelSpec, options: BlockOptions) -> StageSpec:
    """Tokens, time and text to what the blocks take."""
    inputs = {
        "tokens": _STATE,
        "time_features": StageTensor("fp32", (1, FREQ_DIM)),
        "text": StageTensor("bf16", (TEXT_LENGTH, TEXT_DIM)),
    }
    if model.image_to_video:
        inputs["condition"] = StageTensor("fp32", ("L", model.patch_features - _TOKEN))
    return StageSpec(
        name="embed",
        component="dit",
        inputs=inputs,
        weights=stage_weights(model, "embed", options.linear),
        outputs={"x": _x(model), "context": _context(model), "e": _e(model, 1), "e0": _e(model, 6)},
        function=dit_functions(options)["embed"],
        profile=_profile(model),
    )


def block_stage(model: ModelSpec, options: BlockOptions) -> StageSpec:
    """One block, run once for each layer."""
    angle = StageTensor("fp32", ("L", 64))
    return StageSpec(
        name="block",
        component="dit",
        inputs={"x": _x(model), "context": _context(model), "e0": _e(model, 6), "cos": angle, "sin": angle},
        weights=stage_weights(model, "block", options.linear),
        outputs={"x": _x(model)},
        function=dit_functions(options)["block"],
        profile=_profile(model),
        choices={"attention": options.attention, "topk_milli": options.topk_milli, "linear": options.linear},
        plans=True,
    )


def head_stage(model: ModelSpec, options: BlockOptions) -> StageSpec:
    """The blocks' output to the velocity v, and the sampler's update a·tokens + b·v + c·noise."""
    return StageSpec(
        name="head",
        component="dit",
        inputs={
            "x": _x(model),
            "e": _e(model, 1),
            "tokens": _STATE,
            "noise": _STATE,
            "a": _SCALAR,
            "b": _SCALAR,
            "c": _SCALAR,
        },
        weights=stage_weights(model, "head", options.linear),
        outputs={"tokens": _STATE, "v": _STATE},
        function=dit_functions(options)["head"],
        profile=_profile(model),
    )


def _x(model: ModelSpec) -> StageTensor:
    return StageTensor("bf16", ("L", model.dim))


def _context(model: ModelSpec) -> StageTensor:
    return StageTensor("bf16", (TEXT_LENGTH, model.dim))


def _e(model: ModelSpec, rows: int) -> StageTensor:
    return StageTensor("fp32", (rows, model.dim))


def _profile(model: ModelSpec) -> tuple[int, int, int]:
    return MIN_TOKENS, model.tokens(), model.max_tokens


@cache
def dit_functions(options: BlockOptions) -> Mapping[Stage, Callable[..., Any]]:
    """Each stage as a function of its activations, in order, and the mapping of weights."""

    def embed(tokens: Tensor, time_features: Tensor, text: Tensor, *rest: Any) -> Any:
        return functions.embed(tokens, time_features, text, rest[-1], *rest[:-1])

    def block(x: Tensor, context: Tensor, e0: Tensor, cos: Tensor, sin: Tensor, weights: functions.Weights) -> Tensor:
        return functions.block(x, context, e0, cos, sin, weights, options)

    return {"embed": embed, "block": block, "head": functions.head}
