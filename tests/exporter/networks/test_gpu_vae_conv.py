"""The VAE on a Hopper GPU: its convolutions against the same taps in fp32, the decoder against the traced function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.bench.synthetic import random_weights
from exporter.networks.vae import halves, hopper_conv
from exporter.networks.vae.channels_last import ChannelsLast
from exporter.networks.vae.halves import Half
from exporter.networks.vae.hopper_conv import CONFIGS, Config, Packed, convolve, packed, packed_upsampling, plain
from exporter.networks.vae.hopper_tape import HopperTape
from exporter.networks.vae.layers import Tape, Weights
from exporter.networks.vae.spec import VAES
from exporter.networks.vae.weights import packed_weights
from plugins.torch_op import device_sm

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]


@pytest.fixture(autouse=True)
def hopper(cuda: None) -> None:
    if device_sm() != 90:
        pytest.skip("the kernel is sm_90's")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(sum(shape))).bfloat16()


def weight_of(kind: str, n: int, c: int) -> Packed:
    if kind == "up":
        return packed_upsampling(random(n, c, 3, 3) / (9 * c) ** 0.5)
    frames, side = {"first": (1, 3), "causal": (3, 3), "time": (3, 1)}[kind]
    return packed(random(n, c, frames, side, side) / (frames * side * side * c) ** 0.5)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", ["causal", "first", "time", "up"])
@pytest.mark.parametrize(("n", "c"), [(96, 96), (192, 96), (384, 192), (3, 96), (384, 16)])
def test_every_tile_of_every_kind(n: int, c: int, kind: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged frames, one to four; the cache above and below the frames in memory; with and without a residual."""
    monkeypatch.setattr(hopper_conv, "choose", lambda *sizes: config)
    weight, bias = weight_of(kind, n, c), random(n)
    for frames, height, width, below in ((4, 37, 45, True), (1, 5, 7, False), (2, 16, 33, False)):
        memory = random(weight.before + frames, height, width, c)
        first, second = memory.split((weight.before, frames) if below else (frames, weight.before))
        before, x = (first, second) if below else (second, first)
        scale = 1 + weight.phases // 4
        residual = random(frames, scale * height, scale * width, n) if frames > 1 else None
        got = convolve(x, before if weight.before else None, weight, bias, residual)[..., :n].float()
        full = F.pad(bias, (0, weight.matrices.shape[1] - n))
        want = plain(x.float(), before, weight, full, None)[..., :n]
        want = want if residual is None else want + residual.float()
        assert (got - want).norm() < 4e-3 * want.norm()
        assert (got - want).abs().max() < 0.1


def decoded(weights: Weights, chunks: list[Tensor], tape: type[Tape]) -> Tensor:
    """The whole video, chunk by chunk, as fp32 pixels."""
    spec, out = VAES["Wan2.1"], []
    dtype = weights["conv2.weight"].dtype
    held: dict[Half, Any] = {"decode_latent": {}, "decode_pixels": None}
    for name, c in halves.caches(spec, "decode_latent").items():
        held["decode_latent"][name] = chunks[0].new_zeros((1, c.channels, c.frames, *chunks[0].shape[3:]), dtype=dtype)
    for x in chunks:
        for half in held:
            x, held[half] = halves.run(half, x, held[half], weights, spec, tape)
        out.append(x.float())
    return torch.cat(out, 2)


@torch.no_grad()
def test_the_decoder_is_as_close_to_fp32_as_cudnns() -> None:
    """Full widths, random weights, five chunks; ``Tape`` in fp32 is the traced function."""
    table = {k: w for half in halves.HALVES for k, w in packed_weights(VAES["Wan2.1"], half).items()}
    weights = random_weights(table, 0, "cuda")
    exact = {name: weight.float() for name, weight in weights.items()}
    chunks = list(
        torch.randn(1, 16, 5, 20, 26, device="cuda", generator=torch.Generator("cuda").manual_seed(3)).split(1, 2)
    )
    want = decoded(exact, chunks, Tape)
    ours, cudnn = (
        float((decoded(weights, chunks, tape) - want).norm() / want.norm()) for tape in (HopperTape, ChannelsLast)
    )
    print(f"distance to fp32: {ours:.2e}, by cuDNN in bf16 {cudnn:.2e}")
    assert ours < 1.1 * cudnn
    assert ours < 3e-2
