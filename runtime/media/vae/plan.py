"""How the VAE goes over a picture within a budget of device memory: whole, in tiles chunk by chunk, or tile by tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plugins.errors import UserError
from runtime.backends.protocol import Activations
from runtime.bundle import Manifest, StageEntry
from runtime.byte_sizes import gigabytes, gigabytes_up
from runtime.layout import weight_layout
from runtime.media.vae.chunks import Chunks
from runtime.media.vae.tiles import Tile, cut

FACTOR = 8  # pixels per latent
Task = Literal["encode", "decode"]


@dataclass(frozen=True)
class VaePlan:
    """How a video is encoded or decoded; ``peak`` in bytes of device memory.

    ``by_chunk``: every tile of a chunk before the next chunk, so that frames come as they are decoded; the caches of
    all tiles are in ``peak``. Otherwise every chunk of a tile before the next tile, with one tile's caches.
    ``weights``: bytes of both halves' weights, which are in ``peak`` too.
    """

    task: Task
    tiles: tuple[Tile, ...]
    by_chunk: bool
    peak: int
    weights: int

    @property
    def how(self) -> str:
        """As one reads it."""
        if len(self.tiles) == 1:
            return "whole"
        first = self.tiles[0]
        tiles = f"{len(self.tiles)} tiles of {FACTOR * first.columns.length}x{FACTOR * first.rows.length}"
        if self.by_chunk:
            return f"{tiles}, chunk by chunk"
        return f"{tiles}, one after the other" + (": the caches of all do not fit" if self.task == "decode" else "")

    def line(self, title: str) -> str:
        """The plan as one reads it."""
        return f"{title} {self.how}: at most {gigabytes(self.peak)} of device memory"


def weight_bytes(stage: StageEntry) -> int:
    """Bytes of the slot that holds a stage's weights."""
    return weight_layout(stage).nbytes


class _Need:
    """Bytes of device memory of a task on pictures of ``height`` × ``width`` latents."""

    def __init__(self, manifest: Manifest, activations: Activations, task: Task, height: int, width: int) -> None:
        self.first, self.following = (manifest.stage(f"{task}_{part}") for part in ("first", "next"))
        self.latent, self.area = manifest.stage(f"{task}_latent"), {"H": height, "W": width}
        self._activations = activations
        self._latent = Chunks.held(self.latent, self.area), activations(self.latent.name, self.area)

    def peak(self, height: int, width: int, tracks: int, *, by_chunk: bool) -> int:
        """Both halves at once where chunks pass through both, one after the other where tiles do not; weights of both.

        The halves take turns in the activation memory, which TensorRT's runner keeps from one to the other.
        """
        sizes = {"H": height, "W": width}
        held = Chunks.held(self.following, sizes, tracks if by_chunk else 1)
        running = max(self._activations(stage.name, sizes) for stage in (self.first, self.following))
        latent_held, latent_running = self._latent
        apart = max(latent_held + weight_bytes(self.following), held + weight_bytes(self.latent))
        together = latent_held + held if by_chunk else apart
        return together + max(latent_running, running)

    def fits(self, limit: int | None, height: int, width: int, tracks: int, *, by_chunk: bool) -> bool:
        if limit is None:
            return True
        caches = Chunks.held(self.following, {"H": height, "W": width}, tracks if by_chunk else 1)
        return caches <= limit and self.peak(height, width, tracks, by_chunk=by_chunk) <= limit


def plan_vae(
    manifest: Manifest, activations: Activations, task: Task, height: int, width: int, limit: int | None
) -> VaePlan:
    """How latents [16, T, height, width] are made or read within ``limit`` bytes. Raises UserError if nothing fits.

    Nothing waits for an encoder's chunks, so that it always goes tile by tile.
    """
    need = _Need(manifest, activations, task, height, width)
    for by_chunk in (True, False) if task == "decode" else (False,):

        def fits(h: int, w: int, count: int, by_chunk: bool = by_chunk) -> bool:
            return need.fits(limit, h, w, count, by_chunk=by_chunk)

        tiles = cut(height, width, need.following.profile.max, fits)
        if tiles is not None:
            rows, columns = tiles[0].rows.length, tiles[0].columns.length
            peak = need.peak(rows, columns, len(tiles), by_chunk=by_chunk)
            return VaePlan(task, tiles, by_chunk, peak, sum(map(weight_bytes, (need.latent, need.following))))
    least = need.peak(min(height, 15), min(width, 15), 1, by_chunk=False)
    raise UserError(
        f"The VAE cannot {task} {FACTOR * width}x{FACTOR * height} in {gigabytes(limit or 0)} of device memory.",
        expected=f"at least {gigabytes_up(least)}",
        remedy="give more device memory, or fewer pixels",
    )
