"""The one definition of the VRAM estimate that ``list`` shows and a manifest states."""

from __future__ import annotations

from exporter.models import OUT_CHANNELS, ModelSpec
from exporter.networks.dit.weights import packed_bytes
from exporter.networks.weight_spec import LinearMode

# The block's activation memory, for want of a builder's figure: bytes for each element of [L, D], and SageSLA's sums
# over keys, which do not grow with L. Within 5 % of "Total Activation Memory" of the sm_120 builds at max L.
ACTIVATION_BYTES_PER_ELEMENT = 11
STATE_BYTES = 75_000_000
_TOKEN = OUT_CHANNELS * 4  # features of one token's latents


def vram_estimate(model: ModelSpec, linear: LinearMode = "int8", activation_bytes: int | None = None) -> int:
    """Bytes of device memory that a step of the DiT takes at the profile's max L, one expert resident.

    Its packed weights, the largest stage's activation memory and the stages' inputs and outputs; not the CUDA context,
    the text encoder or the VAE. ``activation_bytes`` is the builder's figure; without one it is estimated from shapes.
    """
    length = model.max_tokens
    if activation_bytes is None:
        activation_bytes = ACTIVATION_BYTES_PER_ELEMENT * length * model.dim + STATE_BYTES
    return packed_bytes(model, linear) + activation_bytes + length * _io_bytes_per_token(model)


def _io_bytes_per_token(model: ModelSpec) -> int:
    x = 2 * 2 * model.dim  # bf16, in and out
    latents = 4 * 4 * _TOKEN  # fp32 tokens, noise, updated tokens and v
    rope = 2 * 4 * 64  # fp32 cosines and sines
    condition = 4 * (model.patch_features - _TOKEN)
    return x + latents + rope + condition
