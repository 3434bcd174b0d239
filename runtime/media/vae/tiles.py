"""Cutting a picture into tiles whose margins hold all that their middle depends on: the result has no seams.

The halves of the VAE above the latents' resolution are convolutions. Summed over all of them, an output pixel depends
on latents at most 6.25 away, so that a margin of 7 makes tiles exact and nothing needs to be blended. The tiny decoder
is convolutions from the latents on, half of them at their resolution, and sees 17.75 far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MARGIN, TINY_MARGIN = 7, 18  # latents


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in latents: it computes [outer, outer_end) and keeps [start, end)."""

    start: int
    end: int
    outer: int
    outer_end: int

    @property
    def length(self) -> int:
        return self.outer_end - self.outer

    def kept(self, factor: int) -> slice:
        """The kept part of the tile's own output, ``factor`` pixels per latent."""
        return slice((self.start - self.outer) * factor, (self.end - self.outer) * factor)

    def placed(self, factor: int) -> slice:
        """Where that part lies in the whole."""
        return slice(self.start * factor, self.end * factor)


@dataclass(frozen=True)
class Tile:
    """A tile; all tiles of a cut compute the same size."""

    rows: Span
    columns: Span


def spans(length: int, count: int, margin: int) -> tuple[Span, ...]:
    """``count`` tiles along an axis, of equal computed length; ``margin`` in latents."""
    core = -(-length // count)
    outer = min(length, core + 2 * margin)
    made = []
    for index in range(count):
        start, end = index * core, min(length, (index + 1) * core)
        low = min(max(0, start - margin), length - outer)
        made.append(Span(start, end, low, low + outer))
    return tuple(span for span in made if span.start < span.end)


def cut(
    height: int, width: int, largest: int, fits: Callable[[int, int, int], bool], margin: int = MARGIN
) -> tuple[Tile, ...] | None:
    """The fewest tiles whose sides are at most ``largest`` and that fit by their computed height, width and number.

    None if no tiles do. The longer side is cut first.
    """
    rows = columns = 1
    while True:
        across, along = spans(height, rows, margin), spans(width, columns, margin)
        h, w = across[0].length, along[0].length
        if h <= largest and w <= largest and fits(h, w, len(across) * len(along)):
            return tuple(Tile(row, column) for row in across for column in along)
        if min(h, w) <= 2 * margin + 1 and max(h, w) <= 2 * margin + 2:
            return None
        if w >= h:
            columns += 1
        else:
            rows += 1
