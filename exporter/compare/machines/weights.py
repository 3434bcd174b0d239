"""Where a runner's weights come from: the bundle, the checkpoint packed as export does, or the checkpoint in fp32.

Each gives one stage's weights when asked and keeps none, so that a 14B model passes through in single blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from exporter.checkpoint.reader import Checkpoint
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.checkpoint.source import TensorMeta
from exporter.models import ModelSpec
from exporter.networks.dit.weights import Stage, stage_weights
from exporter.networks.weight_spec import LinearMode, WeightSpec
from exporter.packing.packer import Packer, sources
from exporter.packing.quantize import block_dequantize
from runtime.bundle import Manifest


class Weights(Protocol):
    """One stage's weights by the names of ``stage_weights``; ``layer`` counts for blocks only."""

    def __call__(self, expert: str, stage: Stage, layer: int = 0) -> dict[str, Tensor]: ...


def _table(model: ModelSpec, stage: Stage, linear: LinearMode, layer: int) -> dict[str, tuple[str, WeightSpec]]:
    """Stage's name of a weight → its name in a packed file, and its shape and dtype."""
    prefix = f"blocks.{layer}." if stage == "block" else ""
    return {name: (prefix + name, spec) for name, spec in stage_weights(model, stage, linear).items()}


class BundleWeights:
    """The packed files of a bundle: what is deployed."""

    def __init__(self, folder: Path, manifest: Manifest, model: ModelSpec) -> None:
        self._files = {expert: SafetensorsFile(folder / name) for expert, name in manifest.weights.items()}
        self._model, self._linear = model, manifest.sampler.linear

    def __call__(self, expert: str, stage: Stage, layer: int = 0) -> dict[str, Tensor]:
        table = _table(self._model, stage, self._linear, layer)
        return {name: self._files[expert].load(packed) for name, (packed, _) in table.items()}


class CheckpointWeights:
    """The checkpoint's weights as ``turbotrt pack`` would write them, made anew."""

    def __init__(self, readers: Mapping[str, Checkpoint], model: ModelSpec, linear: LinearMode) -> None:
        self._readers, self._model, self._linear = readers, model, linear

    def __call__(self, expert: str, stage: Stage, layer: int = 0) -> dict[str, Tensor]:
        packer = Packer(self._readers[expert])
        weights = {}
        for name, (packed, spec) in _table(self._model, stage, self._linear, layer).items():
            pieces = list(packer.pieces(packed, TensorMeta(spec.shape, spec.dtype)))
            weights[name] = torch.cat([piece.reshape(-1) for piece in pieces]).reshape(spec.shape)
        return weights


class FloatWeights:
    """The checkpoint's weights in fp32 under the packed names: an INT8 matrix is the float one, all its scales 1.

    A -quant checkpoint has no other weights than its INT8 ones: they are dequantized.
    """

    def __init__(self, readers: Mapping[str, Checkpoint], model: ModelSpec, linear: LinearMode) -> None:
        self._readers, self._model, self._linear = readers, model, linear

    def __call__(self, expert: str, stage: Stage, layer: int = 0) -> dict[str, Tensor]:
        reader = self._readers[expert]
        weights = {}
        for name, (packed, spec) in _table(self._model, stage, self._linear, layer).items():
            if name.endswith(".scale"):
                weights[name] = torch.ones(spec.shape)
                continue
            parts = [float_tensor(reader, source.replace(".int8_weight", ".weight")) for source in sources(packed)]
            weights[name] = torch.cat(parts).reshape(spec.shape)
        return weights


def float_tensor(reader: Checkpoint, name: str) -> Tensor:
    """A tensor of the checkpoint in fp32, by its float name; dequantized where the checkpoint is of the -quant form."""
    module, _, leaf = name.rpartition(".")
    if leaf == "weight" and f"{module}.int8_weight" in reader.names:
        return block_dequantize(reader.load(f"{module}.int8_weight"), reader.load(f"{module}.scale"))
    return reader.load(name).float()
