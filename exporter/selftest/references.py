"""Latents of every variant as the torch backend gives them on the CPU, shipped with the selftest: no torch is needed.

``python -m tests.support.selftest_references`` makes them anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporter.networks.dit.options import DENSE
from exporter.selftest.variants import Variant
from runtime.numerics import Array
from runtime.tensor_files import read_tensor

FILE = Path(__file__).with_suffix(".safetensors")
#: Of the latents' 16 channels, so many are kept: each depends on every feature of the model's last tokens.
CHANNELS = 4
#: How far latents made anew may be from the shipped ones, which are fp16: threads and versions of torch sum otherwise.
TOLERANCE = 2e-3


def key(variant: Variant, video: tuple[int, int, int]) -> str:
    """The name of a variant's latents of one video. Oracles round no scores: they know dense and sparse attention."""
    attention = "dense" if variant.attention in DENSE else "sparse"
    image = ", image" if variant.model.image_to_video else ""
    return f"{attention}, {variant.linear}{image}, {'x'.join(map(str, video))}"


def reference(variant: Variant, video: tuple[int, int, int]) -> Array:
    """The first channels of the latents, fp32 [4, T, H, W]."""
    found: Array = read_tensor(FILE, key(variant, video)).astype(np.float32)
    return found
