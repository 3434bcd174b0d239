"""What a bundle's ``polygraphy_scripts.py`` calls: network, builder config and inputs of one stage, for Polygraphy.

Polygraphy's ``--plugins`` takes shared libraries only; a network script registers our Python plugins itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.models import model_named
from runtime.bundle import Manifest, MediaStage, StageFiles, load_manifest

TOKENS = 256  # L of a DiT stage's inputs that are made up: small enough for any machine
SEED = 0


def _stage(manifest: Manifest, name: str) -> StageFiles | MediaStage:
    stages: list[StageFiles | MediaStage] = [*manifest.stages, *manifest.media]
    return next(stage for stage in stages if stage.name == name)


def network(bundle: Path, stage: str) -> tuple[Any, Any, Any]:
    """Builder, parsed network and parser of a stage's ONNX graph, our plugins registered. Raises RuntimeError."""
    from polygraphy.backend.trt import get_trt_logger

    from exporter.builder.child import parse
    from exporter.builder.flavour import load
    from plugins.registry import OPS
    from plugins.tensorrt_plugin import register

    manifest = load_manifest(bundle)
    trt = load(manifest.gpu.flavour)
    register(trt, OPS)
    builder = trt.Builder(get_trt_logger())
    return builder, *parse(trt, builder, get_trt_logger(), str(bundle / _stage(manifest, stage).onnx))


def config(bundle: Path, stage: str, builder: Any, made: Any) -> Any:
    """The builder config that export used: the bundle's GPU, no TF32, the stage's profile."""
    from exporter.builder.child import builder_config
    from exporter.builder.flavour import load

    manifest = load_manifest(bundle)
    limits = _stage(manifest, stage).profile
    profile = (limits.min, limits.opt, limits.max)
    return builder_config(load(manifest.gpu.flavour), builder, made, manifest.gpu.name, profile)


def inputs(bundle: Path, stage: str) -> Iterator[dict[str, Any]]:
    """One feed: made-up activations of a small size, and the bundle's weights (of block 0), random without any."""
    import torch

    from plugins.torch_dtypes import torch_dtype
    from runtime.dims import shape_of, split_dim
    from runtime.media.text.relative_position import relative_buckets

    manifest = load_manifest(bundle)
    entry = _stage(manifest, stage)
    size = _size(entry)
    generator = torch.Generator().manual_seed(SEED)
    weights, activations = _weights(bundle, manifest, entry), _activations(manifest, entry)
    feed = {}
    for info in entry.inputs:
        symbols = {split_dim(dim)[1] for dim in info.dims if isinstance(dim, str)}
        shape = shape_of(info.dims, dict.fromkeys(symbols, size))
        if info.name in weights:
            feed[info.name] = weights[info.name]
        elif info.name == "buckets":
            feed[info.name] = torch.from_numpy(relative_buckets(size))
        elif info.dtype == "int8":
            feed[info.name] = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        else:
            scale = 1.0 if info.name in activations else 0.02
            feed[info.name] = (scale * torch.randn(shape, generator=generator)).to(torch_dtype(info.dtype))
    yield feed


def _size(entry: StageFiles | MediaStage) -> int:
    """What the symbols of made-up inputs are: tokens, or the sides of a small picture's latents."""
    if isinstance(entry, StageFiles):
        return TOKENS
    return entry.profile.opt if entry.component == "text" else entry.profile.min


def _activations(manifest: Manifest, entry: StageFiles | MediaStage) -> set[str]:
    """Which of a stage's inputs are no weights."""
    from exporter.networks.dit.stages import activation_inputs
    from runtime.media_layout import is_activation

    if isinstance(entry, MediaStage):
        return {info.name for info in entry.inputs if is_activation(info.name)}
    return set(activation_inputs(model_named(manifest.model.name), entry.name))  # type: ignore[arg-type]


def _weights(bundle: Path, manifest: Manifest, entry: StageFiles | MediaStage) -> dict[str, Any]:
    """A stage's weights, of the first expert and of block 0; none where the bundle has none."""
    from exporter.checkpoint.safetensors_file import SafetensorsFile
    from exporter.compare.machines.weights import BundleWeights

    if isinstance(entry, StageFiles):
        model = model_named(manifest.model.name)
        if not manifest.weights:
            return {}
        return BundleWeights(bundle, manifest, model)(model.experts[0], entry.name)  # type: ignore[arg-type]
    if entry.component not in manifest.media_weights:
        return {}
    file = SafetensorsFile(bundle / manifest.media_weights[entry.component])
    prefix = "blocks.0." if entry.name == "text_block" else ""
    names = [info.name for info in entry.inputs if info.name not in _activations(manifest, entry)]
    return {name: file.load(prefix + name) for name in names}


def save_inputs(bundle: Path, stage: str, out: Path) -> None:
    """Write the feed for ``polygraphy run --load-inputs``."""
    from polygraphy.json import save_json

    save_json(list(inputs(bundle, stage)), str(out), description="input data")
