"""W8A8 block-128 quantization of weights, as TurboDiffusion's released -quant files were made."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from exporter.networks.weight_spec import ceil_div
from plugins.errors import UserError

BLOCK = 128
AMAX_FLOOR = 1e-8
_BAND_ELEMENTS = 2**21  # fp32 temporaries of 8 MiB: measured faster than whole matrices, and bounded


def _check(weight: torch.Tensor) -> tuple[int, int]:
    if weight.dim() != 2 or 0 in weight.shape:
        raise UserError("Only matrices can be quantized.", expected="[N, K]", got=str(list(weight.shape)))
    return weight.shape[0], weight.shape[1]


def block_quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [N,K], any float dtype → (int8 [N,K], fp32 scale [⌈N/128⌉,⌈K/128⌉]).

    Per 128×128 block, in fp32: amax = max(|x|, 1e-8); scale = amax/128; q = round-half-even(x·(128/amax)) in
    [−128, 127]. NaN and infinity show up in the scale, for the caller to refuse.
    """
    n, k = _check(weight)
    quantized = torch.empty((n, k), dtype=torch.int8)
    scale = torch.empty((ceil_div(n, BLOCK), ceil_div(k, BLOCK)), dtype=torch.float32)
    rows = max(1, _BAND_ELEMENTS // (k * BLOCK)) * BLOCK
    for start in range(0, n, rows):
        band = weight[start : start + rows]
        q, s = _quantize_band(band)
        quantized[start : start + rows] = q
        scale[start // BLOCK : start // BLOCK + s.shape[0]] = s
    return quantized, scale


def _quantize_band(band: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n, k = band.shape
    # Zeros beside a short block change neither its amax nor its other elements.
    padded = pad(band, (0, -k % BLOCK, 0, -n % BLOCK)) if n % BLOCK or k % BLOCK else band
    blocks = padded.to(torch.float32).reshape(ceil_div(n, BLOCK), BLOCK, ceil_div(k, BLOCK), BLOCK)
    amax = blocks.abs().amax((1, 3)).clamp_(min=AMAX_FLOOR)
    scaled = (blocks * (128.0 / amax)[:, None, :, None]).round_().clamp_(-128, 127)
    return scaled.to(torch.int8).reshape(padded.shape)[:n, :k], amax / 128.0


def block_dequantize(quantized: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(int8 or unrounded fp32 [N,K], fp32 [⌈N/128⌉,⌈K/128⌉]) → fp32 [N,K]. UserError if the shapes do not fit."""
    n, k = _check(quantized)
    expected = (ceil_div(n, BLOCK), ceil_div(k, BLOCK))
    if tuple(scale.shape) != expected:
        raise UserError(
            "These scales do not belong to this matrix.", expected=str(expected), got=str(tuple(scale.shape))
        )
    spread = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return quantized.to(torch.float32) * spread
