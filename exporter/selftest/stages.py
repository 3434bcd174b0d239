"""The part "stages": every stage of a bundle alone on random weights, against its function on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from exporter.bench.synthetic import random_weights
from exporter.networks.components import component_stages
from exporter.networks.stage_spec import StageSpec
from exporter.selftest.alone import Raw, opened, relative_l2, run_alone, values
from exporter.selftest.rows import Case
from exporter.selftest.step import Finding, Setting, Step, backend_of, variant_of
from exporter.selftest.variants import SIZES, Variant
from exporter.torch_backend.runner import run_stage
from plugins.dtypes import DTYPES
from plugins.torch_dtypes import torch_dtype
from runtime.backends.protocol import Runner
from runtime.bundle import StageEntry, load_manifest
from runtime.dims import Sizes, shape_of
from runtime.media.text.relative_position import relative_buckets
from runtime.media.vae.tensors import CACHE, TOTAL
from runtime.numerics import rope_tables, to_bf16_bits
from runtime.video_shape import latents_of, tokens_of

#: Relative L2 by dtype of what a stage gives, the block's and the text encoder's apart. fp32: TF32 would show.
_BOUNDS = {"fp32": 1e-4, "bf16": 1e-2, "uint8": 2e-2}
#: A block's with anything in INT8 (H100: at most 1.9e-2), and in bf16 alone (6.5e-3).
_BLOCK_INT8, _BLOCK_BF16 = 5e-2, 2e-2
_TEXT_BLOCK = 3e-2
_VAE = 3e-2
_PROMPTS = (64, 7)  # tokens
Arrays = dict[str, Raw]


def steps(setting: Setting, case: Case) -> Iterator[Step]:
    """A step for each stage and size."""
    variant = variant_of(case)
    videos = SIZES[:1] if setting.quick else SIZES
    for component in variant.components:
        for stage in component_stages(variant.model, component, variant.options, variant.text_linear):
            for index, (width, height, frames) in enumerate(videos):
                shape = latents_of((width, height), frames)
                sizes: Sizes = {
                    "dit": {"L": tokens_of(shape)},
                    "text": {"L": _PROMPTS[index]},
                    "vae": {"H": shape[1], "W": shape[2]},
                }[component]
                name = ", ".join([stage.name, *(f"{symbol} = {value}" for symbol, value in sizes.items())])
                yield Step(name, partial(_check, setting, case, stage, sizes, shape, name), stage.name)


def _check(
    setting: Setting, case: Case, stage: StageSpec, sizes: Sizes, shape: tuple[int, int, int], name: str
) -> Iterator[Finding]:
    variant = variant_of(case)
    folder = setting.bundle(variant)
    manifest = load_manifest(folder)
    entry = manifest.stage(stage.name)
    weights = random_weights(stage.weights, 1, "cpu")
    inputs = stage_inputs(stage, sizes, shape)
    with opened(folder, manifest, backend_of(case)) as runner:
        given = {**inputs, **{key: raw(tensor) for key, tensor in weights.items()}}
        got = run_channels_last(runner, entry, sizes, given)
    want = reference(stage, entry, sizes, inputs, weights)
    found = [
        _compared(variant, entry, key, tensor.dtype, got[key], want[key], inputs) for key, tensor in entry.gives.items()
    ]
    tensor, error, bound = max(found, key=lambda one: one[1] / one[2] if one[2] else 0.0)
    yield Finding(name, stage.name, tensor=tensor, error=error, bound=bound)


def _compared(
    variant: Variant, stage: StageEntry, name: str, dtype: str, got: Raw, want: Raw, inputs: Arrays
) -> tuple[str, float, float]:
    """(name, error, bound) of one output; of a block what it adds to x, which would hide half of it."""
    if name == TOTAL:  # a sum near zero: that it is a number is all it is for
        return name, 0.0 if np.isfinite(got).all() else float("inf"), _VAE
    before = values(inputs["x"], dtype) if stage.name in ("block", "text_block") else np.float32(0)
    error = relative_l2(values(got, dtype) - before, values(want, dtype) - before)
    return name, error, _bound(variant, stage, dtype)


def _bound(variant: Variant, stage: StageEntry, dtype: str) -> float:
    if stage.name == "block":
        rounded = variant.linear == "int8" or variant.attention in ("sagesla", "sage")
        return _BLOCK_INT8 if rounded else _BLOCK_BF16
    if stage.component == "vae":
        return _VAE
    return _TEXT_BLOCK if stage.name == "text_block" else _BOUNDS[dtype]


def stage_inputs(stage: StageSpec, sizes: Sizes, shape: tuple[int, int, int]) -> Arrays:
    """A stage's activations: Gaussian, but for the tables that have one right value."""
    cos, sin = rope_tables(shape)
    made: Arrays = {}
    for index, (name, tensor) in enumerate(stage.inputs.items()):
        if name in ("cos", "sin"):
            made[name] = cos if name == "cos" else sin
        elif name == "buckets":
            made[name] = relative_buckets(sizes["L"])
        else:
            random = np.random.Generator(np.random.Philox(index))
            noise = random.standard_normal(shape_of(tensor.dims, sizes), dtype=np.float32)
            noise *= 0.3 if name == "e0" else 1.0
            made[name] = to_bf16_bits(noise) if tensor.dtype == "bf16" else noise
    return made


def reference(
    stage: StageSpec, entry: StageEntry, sizes: Sizes, inputs: Arrays, weights: Mapping[str, torch.Tensor]
) -> Arrays:
    """What the traced function gives on the CPU, its ops answered by their oracles."""
    dtypes = {tensor.name: tensor.dtype for tensor in entry.inputs}
    given = {name: tensor_of(array, dtypes[name]) for name, array in inputs.items()} | dict(weights)
    outputs = {
        name: torch.empty(shape_of(t.dims, sizes), dtype=torch_dtype(t.dtype)) for name, t in entry.gives.items()
    }
    with torch.inference_mode():
        run_stage(entry, stage.function, given, outputs)
    return {name: raw(tensor) for name, tensor in outputs.items()}


def run_channels_last(runner: Runner, stage: StageEntry, sizes: Sizes, inputs: Arrays) -> Arrays:
    """``run_alone``; the VAE's caches in the order of dims that the torch backend keeps them in on CUDA."""
    if not getattr(runner, "channels_last", False):
        return run_alone(runner, stage, sizes, inputs)
    last = {name: _last(array) if name.startswith(CACHE) else array for name, array in inputs.items()}
    found = run_alone(runner, stage, sizes, last)
    return {name: _first(array) if name.startswith(CACHE) else array for name, array in found.items()}


def _last(array: Raw) -> Raw:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 4, 1)).reshape(array.shape)


def _first(array: Raw) -> Raw:
    n, c, *rest = array.shape
    return np.ascontiguousarray(array.reshape(n, *rest, c).transpose(0, 4, 1, 2, 3))


def tensor_of(array: Raw, dtype: str) -> torch.Tensor:
    """A CPU tensor with the array's values, or bits."""
    bits: Any = np.ascontiguousarray(array)
    flat = torch.from_numpy(bits.reshape(-1).view(np.uint8).copy())
    return flat.view(torch_dtype(dtype)).reshape(array.shape)


def raw(tensor: torch.Tensor) -> Raw:
    """A tensor as it lies in memory."""
    dtype = next(d.numpy for d in DTYPES.values() if getattr(torch, d.torch) == tensor.dtype)
    flat: Raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().view(dtype)
    return flat.reshape(tuple(tensor.shape))
