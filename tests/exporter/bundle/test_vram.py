"""The VRAM estimate, written out for one model, and how far its rule for activations is from what builders said."""

from __future__ import annotations

import pytest

from exporter.bundle.vram import vram_estimate
from exporter.models import MODELS
from exporter.networks.dit.weights import packed_bytes

#: "Total Activation Memory" of the block at max L, in bytes, from exports for rtx5090 with TensorRT for RTX 1.7.1.
BUILT = {"wan2.1-1.3b-480p": 686_857_216, "wan2.1-14b-480p": 1_965_120_512, "wan2.1-14b-720p": 4_564_090_368}


def test_the_estimate_is_weights_activations_and_io() -> None:
    model = MODELS["wan2.2-i2v-a14b-720p"]
    length, width = 80_640, 5_120
    latents, image, rope = 4 * length * 64 * 4, length * 80 * 4, 2 * length * 64 * 4
    io = 2 * length * width * 2 + latents + image + rope
    for linear in ("int8", "bf16"):
        assert vram_estimate(model, linear, 10**9) == packed_bytes(model, linear) + 10**9 + io
        assert vram_estimate(model, linear) == packed_bytes(model, linear) + 11 * length * width + 75 * 10**6 + io


@pytest.mark.parametrize("name", BUILT)
def test_activations_from_shapes_are_near_the_builders(name: str) -> None:
    model = MODELS[name]
    from_shapes = vram_estimate(model) - vram_estimate(model, "int8", 0)
    assert from_shapes == pytest.approx(BUILT[name], rel=0.05)
