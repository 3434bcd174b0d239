"""Latents → frames and frames → latents, chunk by chunk, as one picture or as tiles, within a budget of memory.

A chunk is one frame first and four frames after that, and one latent. Frames come as soon as they are decoded; with
several tiles, while the last tile runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.media.latents import denormalized, normalized
from runtime.media.runner import Runner
from runtime.media.sequence import Sequence
from runtime.media.stages import media_stage
from runtime.media.tiles import Span, Tile, cut
from runtime.memory_plan import gigabytes
from runtime.numerics import Array
from runtime.weights_file import WeightsFile

FACTOR = 8  # pixels per latent
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class VaePlan:
    """How a video is encoded or decoded; ``peak`` in bytes of device memory."""

    tiles: tuple[Tile, ...]
    peak: int

    def line(self, title: str) -> str:
        """The plan as one reads it."""
        count = len(self.tiles)
        span = self.tiles[0]
        how = (
            "whole" if count == 1 else f"as {count} tiles of {FACTOR * span.columns.length}x{FACTOR * span.rows.length}"
        )
        return f"{title} {how}: at most {gigabytes(self.peak)} of device memory"


class Vae:
    """The VAE of one bundle on a runner's device. ``budget`` in bytes; None means no limit."""

    def __init__(self, runner: Runner, manifest: Manifest, file: WeightsFile, budget: int | None) -> None:
        self._runner, self._manifest, self._file, self._budget = runner, manifest, file, budget

    def plan(self, task: str, height: int, width: int) -> VaePlan:
        """How latents [16, T, height, width] are made ("encode") or read ("decode"). Raises UserError if none fits."""
        first, following = (media_stage(self._manifest, f"{task}_{part}") for part in ("first", "next"))
        latent = media_stage(self._manifest, f"{task}_latent")
        whole = Sequence.nbytes(self._runner, None, latent, {"H": height, "W": width})

        def peak(h: int, w: int) -> int:
            tile = Sequence.nbytes(self._runner, first, following, {"H": h, "W": w})
            return whole + tile  # while a whole picture streams, both halves are there

        largest = following.profile.max
        limit = self._budget
        tiles = cut(height, width, largest, lambda h, w: limit is None or peak(h, w) <= limit)
        if tiles is None:
            raise UserError(
                f"The VAE cannot {task} {FACTOR * width}x{FACTOR * height} in {gigabytes(limit or 0)}.",
                expected=f"at least {gigabytes(peak(min(height, 15), min(width, 15)))}",
                remedy="give more device memory, or fewer pixels",
            )
        return VaePlan(tiles, peak(tiles[0].rows.length, tiles[0].columns.length))

    def decode(self, latents: Array) -> Iterator[Frames]:
        """Frames uint8 [t, 8H, 8W, 3] of the DiT's latents fp32 [16, T, H, W]: t is 1 first, then 4."""
        _, count, height, width = latents.shape
        z = denormalized(latents).astype(np.float32)[None]
        tiles = self.plan("decode", height, width).tiles
        with ExitStack() as stack:
            latent = stack.enter_context(self._sequence("decode_latent", height, width))
            features = (latent.step(z[:, :, t : t + 1]) for t in range(count))
            if len(tiles) == 1:
                pixels = stack.enter_context(self._pixels("decode", tiles[0]))
                for feature in features:
                    yield to_uint8(pixels.step(feature))
                return
            kept = list(features)
        yield from self._decode_tiles(kept, tiles, height, width)

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
        with self._sequence("encode_latent", height, width) as latent:
            means = [latent.step(feature) for feature in features]
        return normalized(np.concatenate(means, 2)[0])

    def _decode_tiles(
        self, features: list[npt.NDArray[np.uint16]], tiles: tuple[Tile, ...], height: int, width: int
    ) -> Iterator[Frames]:
        counts = [1] + [4] * (len(features) - 1)
        whole = [np.empty((count, FACTOR * height, FACTOR * width, 3), np.uint8) for count in counts]
        for index, tile in enumerate(tiles):
            rows, columns = tile.rows, tile.columns
            with self._pixels("decode", tile) as pixels:
                for t, feature in enumerate(features):
                    part = feature[..., rows.outer : rows.outer_end, columns.outer : columns.outer_end]
                    out = pixels.step(part)[..., rows.kept(FACTOR), columns.kept(FACTOR)]
                    whole[t][:, rows.placed(FACTOR), columns.placed(FACTOR)] = to_uint8(out)
                    if index == len(tiles) - 1:
                        yield whole[t]

    def _sequence(self, name: str, height: int, width: int) -> Sequence:
        stage = media_stage(self._manifest, name)
        return Sequence(self._runner, self._file, None, stage, {"H": height, "W": width})

    def _pixels(self, task: str, tile: Tile) -> Sequence:
        first, following = (media_stage(self._manifest, f"{task}_{part}") for part in ("first", "next"))
        sizes = {"H": tile.rows.length, "W": tile.columns.length}
        return Sequence(self._runner, self._file, first, following, sizes)


def _outer(span: Span) -> slice:
    return slice(span.outer * FACTOR, span.outer_end * FACTOR)


def to_uint8(frames: Array) -> Frames:
    """uint8 [t, h, w, 3] of fp32 [1, 3, t, h, w] in [−1, 1]. Raises UserError on NaN."""
    if not np.isfinite(frames).all():
        raise UserError("The VAE gave NaN or infinity.", remedy="check the VAE's weights")
    scaled = np.rint((frames[0].transpose(1, 2, 3, 0) + 1) * 127.5)
    return np.ascontiguousarray(scaled.clip(0, 255).astype(np.uint8))
