"""Latents → frames and frames → latents, chunk by chunk, as one picture or as tiles, within a budget of memory.

A chunk is one frame first and four frames after that, and one latent. Frames come as soon as they are decoded, with
several tiles too; only where the caches of all tiles do not fit they come while the last tile runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from runtime.backends.protocol import Runner
from runtime.bundle import Manifest
from runtime.media.vae.chunks import Chunks
from runtime.media.vae.latents import denormalized, normalized
from runtime.media.vae.plan import FACTOR, Task, VaePlan, plan_vae
from runtime.media.vae.tiles import Span, Tile
from runtime.media.vae.weights import VaeWeights
from runtime.numerics import Array

CHUNK = 4  # frames of a chunk after the first
Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.uint16]  # bf16 bits [1, C, 1, H, W]


class Vae:
    """The VAE of one bundle on a runner's device. ``budget`` in bytes; None means no limit."""

    def __init__(self, runner: Runner, manifest: Manifest, weights: VaeWeights, budget: int | None) -> None:
        self._runner, self._manifest, self._weights, self._budget = runner, manifest, weights, budget

    def plan(self, task: Task, height: int, width: int) -> VaePlan:
        """How latents [16, T, height, width] are made ("encode") or read ("decode"). Raises UserError if none fits."""
        return plan_vae(self._manifest, self._runner.activation_bytes, task, height, width, self._budget)

    def decode(self, latents: Array) -> Iterator[Frames]:
        """Frames uint8 [t, 8H, 8W, 3] of the DiT's latents fp32 [16, T, H, W]: t is 1 first, then 4."""
        _, count, height, width = latents.shape
        z = denormalized(latents).astype(np.float32)[None]
        plan = self.plan("decode", height, width)
        with self._chunks("decode_latent", height, width) as latent:
            features = (latent.step(z[:, :, t : t + 1]) for t in range(count))
            if plan.by_chunk:
                yield from self._decode_by_chunk(features, plan.tiles, height, width)
                return
            kept = list(features)
        yield from self._decode_by_tile(kept, plan.tiles, height, width)

    def encode(self, chunks: Iterable[Array], height: int, width: int) -> Array:
        """The DiT's latents fp32 [16, T, H, W] of frames fp32 [3, t, 8H, 8W] in [−1, 1]: t is 1 first, then 4.

        height and width are H and W.
        """
        frames = [np.ascontiguousarray(chunk[None], np.float32) for chunk in chunks]
        tiles = self.plan("encode", height, width).tiles
        features = [np.empty(0)] * len(frames)
        for tile in tiles:
            with self._pixels("encode", tile) as pixels:
                for t, chunk in enumerate(frames):
                    part = chunk[..., _outer(tile.rows), _outer(tile.columns)]
                    out = pixels.step(part)[..., tile.rows.kept(1), tile.columns.kept(1)]
                    if features[t].size == 0:
                        features[t] = np.empty((*out.shape[:3], height, width), out.dtype)
                    features[t][..., tile.rows.placed(1), tile.columns.placed(1)] = out
        with self._chunks("encode_latent", height, width) as latent:
            means = [latent.step(feature) for feature in features]
        return normalized(np.concatenate(means, 2)[0])

    def _decode_by_chunk(
        self, features: Iterator[Features], tiles: tuple[Tile, ...], height: int, width: int
    ) -> Iterator[Frames]:
        with self._pixels("decode", tiles[0], len(tiles)) as pixels:
            for t, feature in enumerate(features):
                whole = _blank(t, height, width)
                for track, tile in enumerate(tiles):
                    _place(pixels.step(_part(feature, tile), track), tile, whole)
                yield whole

    def _decode_by_tile(
        self, features: list[Features], tiles: tuple[Tile, ...], height: int, width: int
    ) -> Iterator[Frames]:
        wholes = [_blank(t, height, width) for t in range(len(features))]
        for tile in tiles:
            with self._pixels("decode", tile) as pixels:
                for feature, whole in zip(features, wholes, strict=True):
                    _place(pixels.step(_part(feature, tile)), tile, whole)
                    if tile is tiles[-1]:
                        yield whole

    def _chunks(self, name: str, height: int, width: int) -> Chunks:
        stage = self._manifest.stage(name)
        return Chunks(self._runner, self._weights, None, stage, {"H": height, "W": width})

    def _pixels(self, task: Task, tile: Tile, tracks: int = 1) -> Chunks:
        first, following = (self._manifest.stage(f"{task}_{part}") for part in ("first", "next"))
        sizes = {"H": tile.rows.length, "W": tile.columns.length}
        return Chunks(self._runner, self._weights, first, following, sizes, tracks)


def _outer(span: Span) -> slice:
    return slice(span.outer * FACTOR, span.outer_end * FACTOR)


def _part(feature: Features, tile: Tile) -> Features:
    """What a tile computes on, of features [1, C, 1, H, W]."""
    return feature[..., tile.rows.outer : tile.rows.outer_end, tile.columns.outer : tile.columns.outer_end]


def _blank(chunk: int, height: int, width: int) -> Frames:
    return np.empty((CHUNK if chunk else 1, FACTOR * height, FACTOR * width, 3), np.uint8)


def _place(frames: Frames, tile: Tile, whole: Frames) -> None:
    """Put what a tile keeps into the frames of its chunk."""
    kept = frames[:, tile.rows.kept(FACTOR), tile.columns.kept(FACTOR)]
    whole[:, tile.rows.placed(FACTOR), tile.columns.placed(FACTOR)] = kept
