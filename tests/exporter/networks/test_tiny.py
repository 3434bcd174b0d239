"""The tiny decoder against TAEHV's description written anew: names, values, chunks, the other memory format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor

from exporter.models import MODELS
from exporter.networks.tiny.channels_last import FORMAT, ChannelsLast
from exporter.networks.tiny.decoder import Layers, decode
from exporter.networks.tiny.spec import TINY_DECODERS, TinySpec, tiny_weights
from exporter.networks.tiny.stages import memories, tiny_stages
from exporter.networks.vae.channels_last import ChannelsLast as VaeChannelsLast
from exporter.networks.vae.layers import Tape
from exporter.torch_backend.memory import meta_tensors
from exporter.torch_backend.runner import run_stage
from runtime.media.vae.tiles import TINY_MARGIN
from tests.support.media_bundle import random_tensors
from tests.support.plain_tiny import PlainTiny

SPEC = TinySpec("test", widths=(24, 16, 8, 8), blocks=3)
H, W = 3, 5


@cache
def plain(spec: TinySpec = SPEC) -> PlainTiny:
    torch.manual_seed(0)
    made: PlainTiny = PlainTiny(spec).eval()
    return made


def weights(spec: TinySpec = SPEC) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = plain(spec).state_dict()
    return found


def latents(count: int, height: int = H, width: int = W) -> Tensor:
    return 2 * torch.randn(16, count, height, width, generator=torch.Generator().manual_seed(count))


def by_chunks(z: Tensor, spec: TinySpec = SPEC, size: int = 1, layers: Layers | None = None) -> Tensor:
    """The first latent alone, then ``size`` at a time."""
    before, made = None, []
    for chunk in (z[:, :1], *z[:, 1:].split(size, 1)) if z.shape[1] > 1 else (z,):
        pixels, before = decode(chunk[None], before, weights(spec), spec, layers)
        made.append(pixels)
    return torch.cat(made)


@pytest.mark.parametrize("spec", [SPEC, *TINY_DECODERS.values()], ids=lambda spec: spec.name)
def test_the_key_table_is_the_published(spec: TinySpec) -> None:
    """Names and shapes; of taew2_1 a few written down from its author's code."""
    with torch.device("meta"):
        published = PlainTiny(spec).state_dict()
    assert {name: tuple(w.shape) for name, w in published.items()} == {
        n: w.shape for n, w in tiny_weights(spec).items()
    }
    if spec.name == "taew2_1":
        known = {
            "decoder.1.weight": (256, 16, 3, 3),
            "decoder.5.conv.4.bias": (256,),
            "decoder.7.conv.weight": (256, 256, 1, 1),
            "decoder.8.weight": (128, 256, 3, 3),
            "decoder.13.conv.weight": (256, 128, 1, 1),
            "decoder.19.conv.weight": (128, 64, 1, 1),
            "decoder.22.weight": (3, 64, 3, 3),
        }
        assert {name: tuple(published[name].shape) for name in known} == known
        assert "decoder.8.bias" not in published


@pytest.mark.parametrize("spec", [SPEC, TINY_DECODERS["taew2_1-tiny"]], ids=lambda spec: spec.name)
@pytest.mark.parametrize("count", [1, 2, 4])
@torch.no_grad()
def test_values(spec: TinySpec, count: int) -> None:
    """fp32, chunk by chunk, against the whole video frame by frame."""
    z = latents(count)
    want = plain(spec)(z)
    got = by_chunks(z, spec)
    assert got.shape == want.shape == (4 * count - 3, 3, 8 * H, 8 * W)
    assert (got - want).abs().max() < 1e-5
    assert want.std() > 0.01


@torch.no_grad()
def test_published_widths() -> None:
    """taew2_1 itself, with random weights, within the 1e-3 that a pixel may be off in fp32."""
    spec = TINY_DECODERS["taew2_1"]
    z = latents(2, 2, 3)
    assert (by_chunks(z, spec) - plain(spec)(z)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [2, 3])
@torch.no_grad()
def test_chunks_of_any_size_are_the_whole(size: int) -> None:
    z = latents(6)
    assert (by_chunks(z, size=size) - by_chunks(z)).abs().max() < 1e-5


@torch.no_grad()
def test_channels_last_is_the_same_function() -> None:
    z = latents(3)
    assert (by_chunks(z, layers=ChannelsLast()) - by_chunks(z)).abs().max() < 1e-5


@torch.no_grad()
def test_convolutions_are_given_what_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operand in the right memory format before it is asked for, outputs in multiples of eight."""
    convolve, seen = torch.nn.functional.conv2d, []

    def watch(x: Tensor, weight: Tensor, *args: object, **options: object) -> Tensor:
        assert x.is_contiguous(memory_format=FORMAT)
        assert weight.is_contiguous(memory_format=FORMAT)
        seen.append(weight.shape[0] % 8)
        return convolve(x, weight, *args, **options).contiguous(memory_format=FORMAT)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watch)
    by_chunks(latents(2), layers=ChannelsLast())
    assert set(seen) == {0}


@torch.no_grad()
def test_stages_chunk_after_chunk() -> None:
    """As the runner drives them: memories pass through raw memory in another order, frames come out as bytes."""
    model = MODELS["wan-tiny"]
    spec = TINY_DECODERS[model.tiny_decoder]
    own = random_tensors(tiny_weights(spec), 3)
    frames = {}
    for last, tape in ((False, Tape), (True, VaeChannelsLast)):
        z, got = latents(3, 4, 6), []
        held: dict[str, Tensor] = {}
        for t in range(3):
            stage = tiny_stages(spec, model)[min(t, 1)].entry("x.onnx")
            function = tiny_stages(spec, model)[min(t, 1)].function
            _, given = meta_tensors(stage, {"H": 4, "W": 6})
            outputs = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in given.items()}
            run_stage(stage, function, {"chunk": z[None, :, t : t + 1], **held, **own}, outputs, tape)
            held = {name: tensor for name, tensor in outputs.items() if name.startswith("cache.")}
            assert torch.isfinite(outputs["total"]).all()
            got.append(outputs["chunk"])
        frames[last] = torch.cat(got)
    assert frames[False].shape == (9, 32, 48, 3)
    assert frames[False].float().std() > 20
    assert (frames[True].int() - frames[False].int()).abs().max() <= 1
    plain_tiny = PlainTiny(spec)
    plain_tiny.load_state_dict({name: weight.float() for name, weight in own.items()})
    want = (plain_tiny(latents(3, 4, 6)).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    assert (frames[False].float() - want).abs().max() <= 3  # of fp16


def test_the_margin_is_as_wide_as_the_reach() -> None:
    """How far, in latents, a pixel depends on what it is made of: half a kernel for each convolution, by scale."""
    spec = TINY_DECODERS["taew2_1"]
    reach = 1.0 + 1 / spec.factor
    for level in spec.levels:
        reach += 3 * len(level.blocks) / level.scale + 1 / (2 * level.scale)
    assert reach == 17.75
    assert reach <= TINY_MARGIN


def test_memories_are_of_their_levels() -> None:
    dims = {name: tensor.dims for name, tensor in memories(SPEC).items()}
    assert len(dims) == 9
    assert dims["decoder.3"] == (1, 24, "H", "W")
    assert dims["decoder.17"] == (1, 8, "4*H", "4*W")
