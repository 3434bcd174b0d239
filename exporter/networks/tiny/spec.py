"""The table of tiny decoders: widths, and the layers' names as TAEHV's checkpoints have them.

A latent frame becomes four: three levels of memory blocks, each doubling height and width behind it, the last two also
the frames. A memory block sees the frame before the one it works on, and nothing later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from exporter.networks.vae.spec import PIXELS
from exporter.networks.weight_spec import WeightSpec

_CONVOLUTIONS = (0, 2, 4)  # of a memory block, by their places among its activations


@dataclass(frozen=True)
class Level:
    """One resolution: its memory blocks, then what grows frames and the convolution behind the upsampling.

    ``scale``: pixels here per latent; ``frames``: frames here per latent; ``grow``: frames made of each.
    """

    blocks: tuple[str, ...]
    width: int
    scale: int
    frames: int
    growing: str
    grow: int
    convolution: str
    next_width: int


@dataclass(frozen=True)
class TinySpec:
    """One decoder. ``widths`` by level, and of what makes the pixels; ``grows``: frames that a level makes of one."""

    name: str
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    latent: int = 16
    blocks: int = 3
    grows: tuple[int, int, int] = (1, 2, 2)

    @property
    def factor(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** len(self.grows))

    @property
    def entry(self) -> str:
        """The first convolution; decoder.0, before it, bounds the latents, and decoder.2 is a ReLU."""
        return "decoder.1"

    @property
    def exit(self) -> str:
        """The last convolution, behind a ReLU."""
        return f"decoder.{3 + len(self.grows) * (self.blocks + 3) + 1}"

    @property
    def levels(self) -> Iterator[Level]:
        """From latents to pixels; a level's upsampling, which has no weights, stands before ``growing``."""
        frames = 1
        for index, grow in enumerate(self.grows):
            at = 3 + index * (self.blocks + 3)
            blocks = tuple(f"decoder.{at + block}" for block in range(self.blocks))
            last = at + self.blocks
            names = f"decoder.{last + 1}.conv", f"decoder.{last + 2}"
            width, following = self.widths[index : index + 2]
            yield Level(blocks, width, 2**index, frames, names[0], grow, names[1], following)
            frames *= grow


def convolutions(block: str) -> tuple[str, str, str]:
    """A memory block's three convolutions, in order; the first takes the frame and the one before it."""
    first, second, third = (f"{block}.conv.{place}" for place in _CONVOLUTIONS)
    return first, second, third


def tiny_weights(spec: TinySpec) -> dict[str, WeightSpec]:
    """Every tensor in the order of use; fp16, in which they are published and in which their author runs them."""
    shapes = _convolution(spec.entry, spec.widths[0], spec.latent)
    for level in spec.levels:
        for block in level.blocks:
            first, second, third = convolutions(block)
            shapes |= _convolution(first, level.width, 2 * level.width)
            shapes |= _convolution(second, level.width, level.width)
            shapes |= _convolution(third, level.width, level.width)
        shapes[f"{level.growing}.weight"] = (level.grow * level.width, level.width, 1, 1)
        shapes[f"{level.convolution}.weight"] = (level.next_width, level.width, 3, 3)
    shapes |= _convolution(spec.exit, PIXELS, spec.widths[-1])
    return {name: WeightSpec(shape, "fp16") for name, shape in shapes.items()}


def _convolution(name: str, c_out: int, c_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c_out, c_in, 3, 3), f"{name}.bias": (c_out,)}


TINY_DECODERS: Mapping[str, TinySpec] = MappingProxyType(
    {spec.name: spec for spec in (TinySpec("taew2_1"), TinySpec("taew2_1-tiny", widths=(32, 16, 8, 8), blocks=1))}
)
