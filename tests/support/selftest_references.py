"""The selftest's shipped latents: ``python -m tests.support.selftest_references`` makes them anew, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from exporter.graphs.stage_graph import tools
from exporter.packing.dit import add_to_bundle, pack_checkpoint
from exporter.selftest.exports import write_checkpoints
from exporter.selftest.generations import Video, generate
from exporter.selftest.references import CHANNELS, FILE, key
from exporter.selftest.variants import SIZES, SMALL, VARIANTS, Variant
from exporter.torch_backend.backend import TORCH
from runtime.bundle import GpuFacts, Manifest, file_info
from runtime.numerics import Array
from runtime.pipeline import Pipeline
from tests.support.progress import SilentProgress
from tests.support.random_bundle import facts


def bundle(folder: Path, variant: Variant) -> Path:
    """The variant's DiT for the torch backend: graphs that were not traced, and the weights that a selftest packs."""
    known = facts(variant.model, variant.attention, variant.linear)
    for stage in known["stages"]:
        (folder / stage.onnx).write_bytes(b"not traced")
    manifest = Manifest(
        **known,
        gpu=GpuFacts(name="rtx5090", sm=120, flavour="tensorrt_rtx"),
        tools=tools(),
        plans={},
        files={stage.onnx: file_info(folder / stage.onnx) for stage in known["stages"]},
        weights={},
        vram_estimate_bytes=0,
    )
    add_weights(folder, manifest, variant)
    return folder


def add_weights(folder: Path, manifest: Manifest, variant: Variant) -> None:
    """Pack the variant's checkpoint into a bundle."""
    packed = pack_checkpoint(
        write_checkpoints(folder, variant.model),
        variant.model,
        folder / "weights.safetensors",
        linear=variant.linear,
        allow_missing_proj_l=False,
        progress=SilentProgress(),
        bundle=manifest,
    )
    add_to_bundle(folder, manifest, packed, SilentProgress())


def latents(folder: Path, variant: Variant, videos: Sequence[Video] = SIZES) -> dict[Video, Array]:
    """The videos' latents by the torch backend."""
    with Pipeline.load(bundle(folder, variant), backend=TORCH) as pipe:
        return {video: generate(pipe, variant, video) for video in videos}


#: A variant for each of the shipped keys.
DISTINCT = {key(VARIANTS[name], SIZES[0]): VARIANTS[name] for name in SMALL}


def main() -> None:
    found = {}
    for variant in DISTINCT.values():
        with tempfile.TemporaryDirectory() as folder:
            for video, values in latents(Path(folder), variant).items():
                found[key(variant, video)] = np.ascontiguousarray(values[:CHANNELS].astype(np.float16))
    save_file(found, FILE)


if __name__ == "__main__":
    main()
