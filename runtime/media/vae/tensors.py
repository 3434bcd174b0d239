"""The tensors of a VAE stage: a chunk in, a chunk out, and the caches that pass from chunk to chunk."""

from __future__ import annotations

from runtime.bundle import StageEntry
from runtime.dims import Sizes
from runtime.layout import Layout, layout_of

CACHE = "cache."  # the prefix of what a stage keeps for the next chunk
TOTAL = "total"  # the sum of a chunk's pixels, in which NaN shows


def cache_layout(stage: StageEntry, sizes: Sizes) -> Layout:
    """The caches that a stage takes, which are those that it gives."""
    return layout_of({t.name: t for t in stage.activations if t.name.startswith(CACHE)}, sizes)


def input_layout(stage: StageEntry, sizes: Sizes) -> Layout:
    """What a stage takes besides weights and caches."""
    return layout_of({t.name: t for t in stage.activations if not t.name.startswith(CACHE)}, sizes)


def output_layout(stage: StageEntry, sizes: Sizes) -> Layout:
    """What a stage gives besides caches."""
    return layout_of({name: t for name, t in stage.gives.items() if not name.startswith(CACHE)}, sizes)
