"""Convolutions of frames [T, H, W, C] for sm_90: how weights lie for ``conv_kernel``, its tiles, and what it computes.

A kernel is a list of taps, each a matrix [N, C]. A nearest ×2 before a 3×3 kernel makes four 2×2 kernels, one for each
parity of row and column of the result, on the small frame: four ninths of the operations, and no large frame is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LANES = 16  # channels come in multiples of these: rows that TMA copies and threads store in whole vectors
_TILE = 16  # positions, in height and in width


@dataclass(frozen=True)
class Packed:
    """``matrices`` bf16 [phases · (before + 1) · side², N, C]; a result of four phases is twice as high and wide."""

    matrices: Tensor
    before: int  # frames before its own that a frame depends on
    side: int
    phases: int = 1


@dataclass(frozen=True)
class Config:
    """Columns of a tile in two parts (wgmma wants powers of two), channels of a step, steps in flight.

    ``cost``: a tile's time for each channel, relative, as measured on an H100.
    """

    first: int
    more: int
    channels: int
    stages: int
    cost: int

    @property
    def width(self) -> int:
        return self.first + self.more


CONFIGS = (
    Config(16, 0, 32, 8, cost=60),
    Config(64, 32, 32, 8, cost=76),
    Config(128, 0, 64, 4, cost=68),
    Config(128, 64, 64, 3, cost=115),
)


def choose(positions: int, columns: int, channels: int, processors: int) -> Config:
    """The config whose tiles are through first: as many at once as processors, channels in whole steps."""

    def time(config: Config) -> int:
        waves = -(-positions * -(-columns // config.width) // processors)
        return waves * -(-channels // config.channels) * config.channels * config.cost

    return min(CONFIGS, key=time)


def packed(weight: Tensor) -> Packed:
    """Of a weight [N, C, kt, k, k]; channels are filled up to LANES with zeros."""
    weight = _filled(weight)
    n, c, frames, side, _ = weight.shape
    return Packed(weight.reshape(n * c, -1).t().contiguous().view(-1, n, c), frames - 1, side)


def packed_upsampling(weight: Tensor) -> Packed:
    """Of a weight [N, C, 3, 3] behind a nearest ×2: each phase's taps are sums of those that meet the same position."""
    weight = _filled(weight)
    a, b, c = weight.float().unbind(2)
    a, b, c = torch.stack((a, b + c, a + b, c)).unbind(-1)
    taps = torch.stack((a, b + c, a + b, c)).view(
        2, 2, 2, 2, *weight.shape[:2]
    )  # column's phase, tap, row's phase, tap
    return Packed(taps.permute(2, 0, 3, 1, 4, 5).reshape(16, *weight.shape[:2]).to(weight.dtype), 0, 2, 4)


def convolve(x: Tensor, before: Tensor | None, weight: Packed, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """[T, s·H, s·W, N] of x [T, H, W, C] behind ``before`` [weight.before, H, W, C], with bias and residual added.

    s is 2 with four phases. Beyond the frames' sides are zeros. On a CUDA device bf16, by ``conv_kernel``.
    """
    t, h, w, c = x.shape
    n, scale = weight.matrices.shape[1], 1 + weight.phases // 4
    x, before = _more_channels(x, -c % LANES), None if before is None else _more_channels(before, -c % LANES)
    residual = None if residual is None else _more_channels(residual, n - bias.numel())
    bias = F.pad(bias, (0, n - bias.numel()))
    if x.is_cuda:
        out = torch.empty((t, scale * h, scale * w, n), dtype=x.dtype, device=x.device)
        _launch(x, before, weight, bias, residual, out)
        return out
    if x.is_meta:
        return x.new_empty((t, scale * h, scale * w, n))
    return plain(x, before, weight, bias, residual)


def plain(x: Tensor, before: Tensor | None, weight: Packed, bias: Tensor, residual: Tensor | None) -> Tensor:
    """What ``convolve`` computes, tap by tap in fp32, in x's dtype."""
    t, h, w, _ = x.shape
    n, c = weight.matrices.shape[1:]
    scale, edge = 1 + weight.phases // 4, weight.side // 2
    joined = F.pad((x if before is None else torch.cat((before, x))).float(), (0, 0, edge, edge, edge, edge))
    out = bias.float().expand(t, scale * h, scale * w, n).clone()
    taps = weight.matrices.float().view(weight.phases, weight.before + 1, weight.side, weight.side, n, c)
    for phase, tap_t, tap_y, tap_x in torch.cartesian_prod(*(torch.arange(count) for count in taps.shape[:4])).tolist():
        row, column = phase // 2, phase % 2
        part = joined[tap_t : tap_t + t, row + tap_y : row + tap_y + h, column + tap_x : column + tap_x + w]
        out[:, row::scale, column::scale] += part @ taps[phase, tap_t, tap_y, tap_x].t()
    return (out if residual is None else out + residual.float()).to(x.dtype)


def _filled(weight: Tensor) -> Tensor:
    out, taken = -weight.shape[0] % LANES, -weight.shape[1] % LANES
    return F.pad(weight, (0, 0) * (weight.dim() - 2) + (0, taken, 0, out)) if out or taken else weight


def _more_channels(x: Tensor, count: int) -> Tensor:
    return F.pad(x, (0, count)) if count else x


def _launch(
    x: Tensor, before: Tensor | None, weight: Packed, bias: Tensor, residual: Tensor | None, out: Tensor
) -> None:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from exporter.networks.vae.conv_kernel import conv_hopper

    t, h, w, c = x.shape
    n = weight.matrices.shape[1]
    across = -(-w // _TILE)
    positions = across * -(-h // _TILE) * t * weight.phases
    processors = _processors(x.device)
    config = choose(positions, n, c, processors)
    columns = -(-n // config.width)
    # Two allocations as one tensor: its first stride is the step between them, so it begins at the lower one.
    step = 0 if before is None else (x.data_ptr() - before.data_ptr()) // x.element_size()
    base = before if before is not None and step > 0 else x
    boxes = TensorDescriptor(
        base,
        [1 if before is None else 2, max(t, weight.before), h, w, c],
        [abs(step) or x.numel(), h * w * c, w * c, c, 1],
        [1, 1, _TILE, _TILE, config.channels],
        NVMMASharedLayout(2 * config.channels, 16, 5),
    )
    rows = weight.matrices.view(-1, c)
    flat = NVMMASharedLayout(2 * config.channels, 16, 2)
    first, more = (
        TensorDescriptor(rows, list(rows.shape), [c, 1], [width, config.channels], flat)
        for width in (config.first, config.more or config.first)
    )
    kernel: Any = conv_hopper
    kernel[(min(processors, positions * columns),)](
        boxes,
        first,
        more,
        bias,
        out if residual is None else residual,
        out,
        positions * columns,
        across,
        columns,
        weight.phases,
        t,
        h,
        w,
        c,
        n,
        weight.before,
        weight.side,
        0 if base is before else 1,
        int(residual is not None),
        N1=config.first,
        N2=config.more,
        BK=config.channels,
        STAGES=config.stages,
        num_warps=4,
    )


@cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
