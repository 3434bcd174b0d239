"""What flash_attention_mma computes, in plain torch from the workspace that the plan's other kernels leave to it.

The interpreter does not know Gluon. So this proves those kernels and the order in which they leave k, v and kv_proj;
the kernel itself is proven on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from plugins.sage_attention.kernel import MmaConfig
from plugins.sage_attention.op import BLOCK_K, BLOCK_Q, HEAD


def keys_of(kq: torch.Tensor) -> torch.Tensor:
    """fp32 [H, keys, 128] of the tiles in fragment order: halves of the channels one after the other."""
    heads = kq.shape[0]
    return kq.view(heads, -1, 2, BLOCK_K, 64).transpose(2, 3).reshape(heads, -1, HEAD).float()


def values_of(vq: torch.Tensor) -> torch.Tensor:
    """fp32 [H, keys, 128]: of a channel's keys (j, q, b) lie in the order (q, j, b); FP16 in halves of 32 keys."""
    heads, halves = vq.shape[0], 1 if vq.element_size() == 1 else 2
    tiles = vq.float().view(heads, -1, halves, HEAD, 4, 8 // halves, 2)
    return tiles.permute(0, 1, 2, 5, 4, 6, 3).reshape(heads, -1, HEAD)


def attend(bound: Mapping[str, torch.Tensor], config: MmaConfig, length: int, keys: int) -> torch.Tensor:
    """The output, fp32 [L, 128·H]; sparse where the workspace has a lut."""
    all_keys, all_values = keys_of(bound["kq"]), values_of(bound["vq"])
    out = torch.empty(length, all_keys.shape[0] * HEAD)
    for head, start in ((h, s) for h in range(all_keys.shape[0]) for s in range(0, length, BLOCK_Q)):
        columns = slice(head * HEAD, head * HEAD + HEAD)
        q = bound["q"][start : start + BLOCK_Q, columns].float()
        blocks = bound["lut"][head, start // BLOCK_Q].long() if "lut" in bound else torch.arange(-(-keys // BLOCK_K))
        index = (blocks[:, None] * BLOCK_K + torch.arange(BLOCK_K)).flatten()
        index = index[index < keys]
        scale = q.abs().amax() / 127
        scores = (q / scale).round() @ all_keys[head, index].T * bound["kscale"][head, index // BLOCK_K] * scale
        exponent = (scores - scores.amax(1, keepdim=True)) / HEAD**0.5
        p = torch.exp(exponent) * 2**config.floor
        rounded = p.to(torch.float8_e4m3fn if config.pv == "fp8" else torch.float16).float()
        o = rounded @ all_values[head, index] / p.sum(1, keepdim=True) * bound["vscale"][head]
        if "kv_proj" in bound:
            phi = torch.softmax(q, -1)
            below = 1e-5 + phi @ bound["z_total"][head]
            o += phi @ bound["kv_proj"][head].float().view(HEAD, HEAD).T / below[:, None] + bound["proj_bias"]
        out[start : start + BLOCK_Q, columns] = o
    return out
