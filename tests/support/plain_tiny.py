"""TAEHV's decoder written anew from its description, frame by frame, as torch modules whose names are the published.

Each frame passes all layers before the next one begins; a memory block keeps what it saw. Upsampling comes before the
frames grow, and the first frames, of which the video has none, are made and dropped: as published, and not as ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.networks.tiny.spec import TinySpec


def _same(taken: int, given: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(taken, given, 3, padding=1, bias=bias)


class Bound(nn.Module):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Memory(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _same(2 * width, width), nn.ReLU(), _same(width, width), nn.ReLU(), _same(width, width)
        )
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        before = torch.zeros_like(x) if self.seen is None else self.seen
        self.seen = x
        return torch.relu(x + self.conv(torch.cat((x, before), dim=1)))


class Grow(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv, self.times = nn.Conv2d(width, times * width, 1, bias=False), times


class PlainTiny(nn.Module):  # type: ignore[misc]
    def __init__(self, spec: TinySpec) -> None:
        super().__init__()
        layers: list[nn.Module] = [Bound(), _same(spec.latent, spec.widths[0]), nn.ReLU()]
        for width, following, times in zip(spec.widths, spec.widths[1:], spec.grows, strict=False):
            layers += [Memory(width) for _ in range(spec.blocks)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, times), _same(width, following, bias=False)]
        layers += [nn.ReLU(), _same(spec.widths[-1], 3)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Frames [4n − 3, 3, 8H, 8W] of latents [16, n, H, W], 0 black and 1 white, not clamped."""
        for layer in self.decoder:
            if isinstance(layer, Memory):
                layer.seen = None
        made: list[Tensor] = []
        for latent in latents.unbind(1):
            self._pass(latent[None], 0, made)
        return torch.cat(made)[3:]

    def _pass(self, x: Tensor, start: int, made: list[Tensor]) -> None:
        for place in range(start, len(self.decoder)):
            layer = self.decoder[place]
            if isinstance(layer, Grow):
                for frame in layer.conv(x).chunk(layer.times, dim=1):
                    self._pass(frame, place + 1, made)
                return
            x = layer(x)
        made.append(x)
