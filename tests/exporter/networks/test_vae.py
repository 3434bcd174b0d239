"""The VAE against diffusers' AutoencoderKLWan (random weights, fp32): whole, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from exporter.checkpoint.vae_names import vae_name
from exporter.networks.vae import halves
from exporter.networks.vae.halves import Half
from exporter.networks.vae.spec import VaeSpec
from exporter.networks.vae.weights import vae_weights

SPEC = VaeSpec(name="test", base=8, residuals=2)
H, W = 4, 6
Weights = Mapping[str, torch.Tensor]
Caches = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def oracle() -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(base_dim=SPEC.base, z_dim=SPEC.latent).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # the fresh gammas are ones and would hide an error
            if "gamma" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


@pytest.fixture(scope="module")
def weights(oracle: Any) -> Weights:
    return {vae_name(name, SPEC): tensor for name, tensor in oracle.state_dict().items()}


def first_caches(half: Half) -> Caches | None:
    """What a half that has one graph for all chunks takes before its first: zeros."""
    if half.endswith("pixels"):
        return None
    return {
        name: torch.zeros(1, c.channels, c.frames, c.scale * H, c.scale * W)
        for name, c in halves.caches(SPEC, half).items()
    }


def decode(latents: torch.Tensor, weights: Weights) -> torch.Tensor:
    features, pixels = first_caches("decode_latent"), first_caches("decode_pixels")
    out = []
    for z in latents.split(1, 2):
        x, features = halves.run("decode_latent", z, features, weights, SPEC)
        x, pixels = halves.run("decode_pixels", x, pixels, weights, SPEC)
        out.append(x.clamp(-1, 1))
    return torch.cat(out, 2)


def encode(frames: torch.Tensor, weights: Weights) -> torch.Tensor:
    pixels, features = first_caches("encode_pixels"), first_caches("encode_latent")
    out = []
    for chunk in (frames[:, :, :1], *frames[:, :, 1:].split(4, 2)):
        if chunk.shape[2]:
            x, pixels = halves.run("encode_pixels", chunk, pixels, weights, SPEC)
            x, features = halves.run("encode_latent", x, features, weights, SPEC)
            out.append(x)
    return torch.cat(out, 2)


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_weight_table_is_diffusers(oracle: Any, weights: Weights) -> None:
    assert {name: tuple(w.shape) for name, w in weights.items()} == vae_weights(SPEC)


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_decode(oracle: Any, weights: Weights, frames: int) -> None:
    latents = torch.randn(1, 16, (frames - 1) // 4 + 1, H, W, generator=torch.Generator().manual_seed(frames))
    want = oracle.decode(latents).sample
    got = decode(latents, weights)
    assert got.shape == want.shape == (1, 3, frames, 8 * H, 8 * W)
    assert distance(got, want) < 1e-4


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_encode(oracle: Any, weights: Weights, frames: int) -> None:
    video = torch.rand(1, 3, frames, 8 * H, 8 * W, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    want = oracle.encode(video).latent_dist.mode()
    got = encode(video, weights)
    assert got.shape == want.shape
    assert distance(got, want) < 1e-4


@torch.no_grad()
def test_cache_table(weights: Weights) -> None:
    """Every half keeps the caches that the table states, with those shapes, from the first chunk and from the next."""
    inputs: dict[Half, tuple[int, int, int]] = {
        "decode_latent": (16, 1, 1),
        "decode_pixels": (SPEC.top, 1, 1),
        "encode_pixels": (3, 4, 8),
        "encode_latent": (SPEC.top, 1, 1),
    }
    for half, (channels, frames, scale) in inputs.items():
        table = {
            name: (1, c.channels, c.frames, c.scale * H, c.scale * W) for name, c in halves.caches(SPEC, half).items()
        }
        before = first_caches(half)
        for count in (1, frames):
            x = torch.randn(1, channels, count, scale * H, scale * W)
            _, before = halves.run(half, x, before, weights, SPEC)
            assert {name: tuple(cache.shape) for name, cache in before.items()} == table


@torch.no_grad()
def test_chunks_of_two_equal_chunks_of_one(weights: Weights) -> None:
    """A next chunk of several latents is the same function as those latents one by one."""
    latents = torch.randn(1, 16, 5, H, W)
    features, pixels = first_caches("decode_latent"), None
    out = []
    for z in (latents[:, :, :1], latents[:, :, 1:3], latents[:, :, 3:]):
        x, features = halves.run("decode_latent", z, features, weights, SPEC)
        x, pixels = halves.run("decode_pixels", x, pixels, weights, SPEC)
        out.append(x.clamp(-1, 1))
    assert distance(torch.cat(out, 2), decode(latents, weights)) < 1e-5
