"""The tiny decoder in memory where each position's channels lie side by side: how the torch backend runs it on CUDA.

cuDNN's tensor-core convolutions want that order. Bias, the block's shortcut and ReLU are one pass with their
convolution. Same function as the traced one, but for the order of roundings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.networks.tiny.decoder import Layers

FORMAT = torch.channels_last
_LANES = 8  # channels come in multiples of these, or cuDNN has no tensor-core kernel


class ChannelsLast(Layers):
    """Fused convolutions on CUDA, plain ones elsewhere, with all operands in this memory format."""

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False, add: Tensor | None = None
    ) -> Tensor:
        count = weight.shape[0]
        if missing := -count % _LANES:
            weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing))
            bias = None if bias is None else F.pad(bias, (0, missing))
        x, weight = x.contiguous(memory_format=FORMAT), weight.contiguous(memory_format=FORMAT)
        if not (relu and x.is_cuda):
            return super().convolve(x, weight, bias, relu=relu, add=add)[:, :count]
        where: tuple[Any, ...] = ((1, 1), (weight.shape[-1] // 2,) * 2, (1, 1), 1)  # stride, padding, dilation, groups
        if add is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *where)[:, :count]
        return torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *where)[:, :count]

    def grown(self, x: Tensor, weight: Tensor, grow: int) -> Tensor:
        y = self.convolve(x, weight, None)
        if grow == 1:
            return y
        frames, channels, height, width = y.shape
        apart = y.permute(0, 2, 3, 1).reshape(frames, height, width, grow, channels // grow).permute(0, 3, 1, 2, 4)
        return apart.reshape(grow * frames, height, width, channels // grow).permute(0, 3, 1, 2)
