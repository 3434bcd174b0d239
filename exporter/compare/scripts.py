"""What a bundle's ``polygraphy_scripts.py`` calls: inputs of one stage, for Polygraphy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.bundle import Manifest, StageEntry, load_manifest

TOKENS = 256  # L of a DiT stage's inputs that are made up: small enough for any machine
SEED = 0


def _stage(manifest: Manifest, name: str) -> StageEntry:
    return next(stage for stage in manifest.stages if stage.name == name)


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
    weights = _weights(bundle, manifest, entry)
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
            scale = 0.02 if info.weight else 1.0
            feed[info.name] = (scale * torch.randn(shape, generator=generator)).to(torch_dtype(info.dtype))
    yield feed


def _size(entry: StageEntry) -> int:
    """What the symbols of made-up inputs are: tokens, or the sides of a small picture's latents."""
    return {"dit": TOKENS, "text": entry.profile.opt, "vae": entry.profile.min, "tiny": entry.profile.min}[
        entry.component
    ]


def _weights(bundle: Path, manifest: Manifest, entry: StageEntry) -> dict[str, Any]:
    """A stage's weights, of the first expert and of block 0; none where the bundle has none."""
    from exporter.checkpoint.safetensors_file import SafetensorsFile

    first = manifest.model.experts[0]
    packed = manifest.weights.get(first) if entry.component == "dit" else manifest.media_weights.get(entry.component)
    if packed is None:
        return {}
    file = SafetensorsFile(bundle / packed)
    prefix = "blocks.0." if entry.name in ("block", "text_block") else ""
    return {info.name: file.load(prefix + info.name) for info in entry.weights}


def save_inputs(bundle: Path, stage: str, out: Path) -> None:
    """Write the feed for ``polygraphy run --load-inputs``."""
    from polygraphy.json import save_json

    save_json(list(inputs(bundle, stage)), str(out), description="input data")
