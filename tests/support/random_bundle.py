"""A runnable bundle of random packed weights, made without a checkpoint, a trace or a build: for the torch backend.

Made for size as well: 14 GB of INT8 weights are written at the disk's rate, from slices of one random buffer.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from exporter.graphs.stage_graph import tools
from exporter.models import FPS, FREQ_DIM, TEXT_LENGTH, ModelSpec
from exporter.networks.dit.options import Attention, BlockOptions
from exporter.networks.dit.stages import dit_stages
from exporter.networks.dit.weights import packed_tensors
from exporter.networks.weight_spec import LinearMode, WeightSpec
from plugins.dtypes import DTYPES
from runtime.bundle import (
    FileInfo,
    GpuFacts,
    Manifest,
    ModelFacts,
    SamplerFacts,
    file_info,
    write_manifest,
)
from runtime.numerics import to_bf16_bits

_POOL = 1 << 26


class _Random:
    """Random values at the speed of a copy: every tensor is another slice of one buffer."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._int8 = self._random.integers(-127, 128, 2 * _POOL, dtype=np.int8)
        self._normal = self._random.standard_normal(1 << 22, dtype=np.float32)

    def int8(self, count: int) -> Any:
        while count:
            start, part = int(self._random.integers(_POOL)), min(count, _POOL)
            yield self._int8[start : start + part]
            count -= part

    def normal(self, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        start = int(self._random.integers(1 << 20))
        return np.resize(self._normal[start:], count)


def _values(name: str, spec: WeightSpec, random: _Random) -> Any:
    """Pieces of one tensor: matrices of deviation 1/√K, norm weights around 1, small biases, open gates."""
    if spec.dtype == "int8":
        yield from random.int8(prod(spec.shape))
        return
    values = random.normal(prod(spec.shape))
    if name.endswith(".scale"):
        values = np.full_like(values, 1 / (73.3 * (128 * spec.shape[1]) ** 0.5))
    elif len(spec.shape) == 2 and name.endswith("weight"):
        values = values * spec.shape[1] ** -0.5
    elif "norm" in name and name.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values = values * (0.1 if name.endswith("modulation") else 0.02)
    if name.startswith("blocks.") and name.endswith("modulation"):
        values.reshape(6, -1)[2::3] += 0.5
    yield to_bf16_bits(values) if spec.dtype == "bf16" else values.astype(np.float32)


def write_weights(path: Path, model: ModelSpec, linear: LinearMode = "int8", seed: int = 0) -> None:
    """Random packed weights of one expert, in safetensors."""
    import json

    table, header, end = packed_tensors(model, linear), {}, 0
    for name, spec in table.items():
        start, end = end, end + prod(spec.shape) * DTYPES[spec.dtype].bytes
        header[name] = {"dtype": DTYPES[spec.dtype].safetensors, "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = _Random(seed)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, spec in table.items():
            for piece in _values(name, spec, random):
                file.write(memoryview(piece).cast("B"))


def make_random_bundle(
    folder: Path,
    model: ModelSpec,
    *,
    gpu: tuple[str, int] = ("rtx5090", 120),
    attention: Attention = "sagesla",
    linear: LinearMode = "int8",
    topk_milli: int = 100,
    hashed: bool = True,
    seed: int = 0,
) -> Manifest:
    """Write an ONNX-only bundle with weights of every expert; ``hashed`` False leaves the weights' sha256 at zero."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for stage in ("embed", "block", "head"):
        (folder / f"{stage}.onnx").write_bytes(b"not traced")
        files[f"{stage}.onnx"] = file_info(folder / f"{stage}.onnx")
    weights = {}
    for index, expert in enumerate(model.experts):
        weights[expert] = f"weights-{expert}.safetensors"
        path = folder / weights[expert]
        write_weights(path, model, linear, seed + index)
        files[path.name] = file_info(path) if hashed else FileInfo(sha256="0" * 64, bytes=path.stat().st_size)
    manifest = Manifest(
        **facts(model, attention, linear, topk_milli),
        gpu=GpuFacts(name=gpu[0], sm=gpu[1], flavour="tensorrt" if gpu[1] in (80, 90, 100) else "tensorrt_rtx"),
        tools=tools(),
        plans={},
        files=files,
        weights=weights,
        has_proj_l=True,
        vram_estimate_bytes=0,
    )
    write_manifest(folder, manifest)
    return manifest


def facts(
    model: ModelSpec, attention: Attention = "sagesla", linear: LinearMode = "int8", topk_milli: int = 100
) -> dict[str, Any]:
    """What a manifest says of a model, a sampler and the DiT's stages."""
    return {
        "model": ModelFacts(
            name=model.name,
            dim=model.dim,
            layers=model.layers,
            heads=model.heads,
            ffn_dim=model.ffn_dim,
            in_channels=model.in_channels,
            text_length=TEXT_LENGTH,
            freq_dim=FREQ_DIM,
            size=model.size,
            frames=model.frames,
            fps=FPS,
            max_tokens=model.max_tokens,
            experts=model.experts,
            max_size=model.max_size,
        ),
        "sampler": SamplerFacts(
            steps=model.steps,
            sigma_max=model.sigma_max,
            boundary=model.boundary,
            topk_milli=topk_milli,
            attention=attention,
            linear=linear,
        ),
        "stages": tuple(
            stage.entry(f"{stage.name}.onnx")
            for stage in dit_stages(model, BlockOptions(attention, topk_milli, linear))
        ),
    }
