"""What TurboDiffusion's authors publish: seconds of the DiT on one GPU, by model.

Their paper: three steps, top-k 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GPU = "rtx5090"
STEPS = 3
SECONDS: Mapping[str, float] = MappingProxyType(
    {
        "wan2.1-1.3b-480p": 1.9,
        "wan2.1-14b-480p": 9.9,
        "wan2.1-14b-720p": 24.0,
        "wan2.2-i2v-a14b-720p": 38.0,
    }
)
