"""Oracle of LayerNormQuantize: y = LN(x)·weight + bias with eps 1e-6, then block-128 quantization (semantics.md)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from plugins.block_int8_quantize.reference import reference as quantize


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [L, D] and fp32 scales of x bf16 [L, D]; weight (1 + scale, or norm3's) and bias fp32 [D].

    Statistics in fp32 over exactly D elements; the normalized value is not rounded to bf16 in between.
    """
    return quantize(F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * weight + bias)
