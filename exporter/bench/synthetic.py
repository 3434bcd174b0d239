"""Random weights of stages and inputs of a block, at the scale trained ones have: for benchmarks and accuracy tests.

INT8 data is quantized from Gaussians: uniform INT8 toggles more bits, and a GPU at its power limit then clocks lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import block_stage
from exporter.networks.weight_spec import WeightSpec
from plugins.block_int8_quantize.reference import reference as quantize
from plugins.torch_dtypes import torch_dtype
from runtime.dims import shape_of
from runtime.numerics import rope_tables


def random_weights(table: Mapping[str, WeightSpec], seed: int, device: str) -> dict[str, torch.Tensor]:
    """Packed weights of a table: matrices of variance 1/fan-in, norms near 1, biases and modulation small."""
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for name, spec in table.items():
        if name.endswith(".scale"):
            continue  # made with its int8_weight, which comes first
        noise = torch.randn(spec.shape, generator=generator, device=device)
        if name.endswith(".int8_weight"):
            made[name], made[name.replace(".int8_weight", ".scale")] = quantize(noise / spec.shape[1] ** 0.5)
        elif name.endswith(("bias", "modulation")):
            made[name] = (0.1 * noise).to(torch_dtype(spec.dtype))
        elif "norm" in name or "gamma" in name:
            made[name] = noise.mul_(0.1).add_(1.0).to(torch_dtype(spec.dtype))
        else:
            made[name] = (noise / prod(spec.shape[1:]) ** 0.5).to(torch_dtype(spec.dtype))
    return made


def block_weights(model: ModelSpec, options: BlockOptions, seed: int, device: str) -> dict[str, torch.Tensor]:
    """One block's packed weights, at random."""
    return random_weights(block_stage(model, options).weights, seed, device)


def block_inputs(model: ModelSpec, seed: int, device: str, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """A block's activation inputs in order, for latents of (T, H, W): Gaussian, RoPE tables as they are."""
    generator = torch.Generator(device).manual_seed(seed)
    length = shape[0] * (shape[1] // 2) * (shape[2] // 2)
    tables = dict(zip(("cos", "sin"), rope_tables(shape), strict=True))
    made = []
    for name, spec in block_stage(model, BlockOptions()).inputs.items():
        if name in tables:
            made.append(torch.from_numpy(tables[name]).to(device))
            continue
        noise = torch.randn(shape_of(spec.dims, {"L": length}), generator=generator, device=device)
        made.append((noise * 0.3 if name == "e0" else noise).to(torch_dtype(spec.dtype)))
    return made
