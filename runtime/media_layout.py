"""The text encoder's and the VAE's stages in a manifest: which inputs are weights, and how large everything is."""

from __future__ import annotations

from collections.abc import Mapping

from plugins.errors import UserError
from runtime.bundle import Manifest, MediaComponent, MediaStage
from runtime.dims import shape_of
from runtime.layout import OUTPUT_SUFFIX, Layout, layout

CACHE = "cache."  # the prefix of what a VAE stage keeps for the next chunk
TOTAL = "total"  # the sum of a chunk's pixels, in which NaN shows
_ACTIVATIONS = ("x", "buckets", "chunk")

Sizes = Mapping[str, int]  # symbol → value


def media_stage(manifest: Manifest, name: str) -> MediaStage:
    """The manifest's entry of a stage. Raises UserError if the bundle was exported without it."""
    for entry in manifest.media:
        if entry.name == name:
            return entry
    component: MediaComponent = "text" if name.startswith("text") else "vae"
    raise UserError(
        f"The bundle has no {name} stage.",
        expected=f"the component {component}",
        got="stages " + (", ".join(entry.name for entry in manifest.media) or "of the DiT alone"),
        remedy="export the model again without leaving it out by --components",
    )


def is_activation(name: str) -> bool:
    """Whether an input is no weight."""
    return name in _ACTIVATIONS or name.startswith(CACHE)


def weight_slot(stage: MediaStage) -> Layout:
    """Where a stage's weights lie in one allocation: of one layer, where the stage is a block."""
    return layout((t.name, shape_of(t.dims, {}), t.dtype) for t in stage.inputs if not is_activation(t.name))


def cache_layout(stage: MediaStage, sizes: Sizes) -> Layout:
    """The caches that a stage takes, which are those that it gives."""
    return layout((t.name, shape_of(t.dims, sizes), t.dtype) for t in stage.inputs if t.name.startswith(CACHE))


def input_layout(stage: MediaStage, sizes: Sizes) -> Layout:
    """What a stage takes besides weights and caches."""
    return layout((t.name, shape_of(t.dims, sizes), t.dtype) for t in stage.inputs if t.name in _ACTIVATIONS)


def output_layout(stage: MediaStage, sizes: Sizes) -> Layout:
    """What a stage gives besides caches, without the suffix of the engine's names."""
    outputs = ((t.name.removesuffix(OUTPUT_SUFFIX), t) for t in stage.outputs)
    return layout((name, shape_of(t.dims, sizes), t.dtype) for name, t in outputs if not name.startswith(CACHE))
