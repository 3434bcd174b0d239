"""How far blocks, steps and frames may be from their reference; how far an op may, its declaration says (``bounds``).

Relative L2 from above, PSNR in dB from below. The figures were set on random weights, two to four times what was
measured there; trained weights may ask for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from exporter.networks.dit.options import Attention
from exporter.networks.weight_spec import LinearMode

#: "fp32": against the model with the checkpoint's own weights. "same": against the same rounded arithmetic.
Against = Literal["fp32", "same"]

#: Of an op that is answered by its oracle on the oracle's own device: only weights, tables or options can differ.
SAME_ARITHMETIC = 1e-6


@dataclass(frozen=True)
class StageBound:
    """Teacher-forced blocks (x) and steps (v, tokens), free-running steps, final latent frames, frames of video."""

    block: float
    step: float
    free: float
    frame_psnr: float
    video_psnr: float


STAGE_BOUNDS: Mapping[tuple[Against, Attention, LinearMode], StageBound] = MappingProxyType(
    {
        ("fp32", "sagesla", "int8"): StageBound(8e-2, 1.5e-1, 3e-1, 20.0, 20.0),
        ("fp32", "sla", "int8"): StageBound(8e-2, 1.5e-1, 3e-1, 20.0, 20.0),
        ("fp32", "sage", "int8"): StageBound(8e-2, 1.5e-1, 3e-1, 20.0, 20.0),
        ("fp32", "original", "int8"): StageBound(8e-2, 1.5e-1, 3e-1, 20.0, 20.0),
        ("fp32", "sagesla", "bf16"): StageBound(5e-2, 1e-1, 2e-1, 23.0, 23.0),
        ("fp32", "sla", "bf16"): StageBound(3e-2, 5e-2, 1e-1, 30.0, 30.0),
        ("fp32", "sage", "bf16"): StageBound(5e-2, 1e-1, 2e-1, 23.0, 23.0),
        ("fp32", "original", "bf16"): StageBound(3e-2, 5e-2, 1e-1, 30.0, 30.0),
        ("same", "sagesla", "int8"): StageBound(5e-2, 8e-2, 2e-1, 23.0, 23.0),
        ("same", "sla", "int8"): StageBound(2e-2, 5e-2, 1e-1, 28.0, 28.0),
        ("same", "sage", "int8"): StageBound(5e-2, 8e-2, 2e-1, 23.0, 23.0),
        ("same", "original", "int8"): StageBound(2e-2, 5e-2, 1e-1, 28.0, 28.0),
        ("same", "sagesla", "bf16"): StageBound(5e-2, 8e-2, 2e-1, 23.0, 23.0),
        ("same", "sla", "bf16"): StageBound(1e-2, 3e-2, 5e-2, 33.0, 33.0),
        ("same", "sage", "bf16"): StageBound(5e-2, 8e-2, 2e-1, 23.0, 23.0),
        ("same", "original", "bf16"): StageBound(1e-2, 3e-2, 5e-2, 33.0, 33.0),
    }
)
