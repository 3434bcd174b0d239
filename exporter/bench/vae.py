"""The VAE's ways to run, timed beside diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exporter.bench.stopwatch import Stopwatch, Weights, compare, opened
from exporter.bench.synthetic import random_weights
from exporter.checkpoint.vae_names import vae_name
from exporter.models import ModelSpec
from exporter.networks.vae import halves
from exporter.networks.vae.channels_last import ChannelsLast
from exporter.networks.vae.hopper_tape import tape_for
from exporter.networks.vae.layers import Tape
from exporter.networks.vae.spec import CHUNK, VAES, VaeSpec
from exporter.networks.vae.weights import packed_weights
from plugins.torch_op import device_sm

OURS = "ours"  # what the torch backend runs on CUDA; everything else is compared with it


@dataclass(frozen=True)
class Way:
    """One way to run the VAE's functions."""

    name: str
    layout: torch.memory_format = torch.channels_last_3d
    dtype: torch.dtype = torch.bfloat16
    tape: Callable[..., Tape] | None = None  # None: the torch backend's on this device
    compiled: bool = False

    @property
    def needs_cuda(self) -> bool:
        """A CPU is slow at fp16 and compiles for minutes."""
        return self.compiled or self.dtype == torch.float16


WAYS = (
    Way(OURS),
    Way("cuDNN, channels last", tape=ChannelsLast),
    Way("cuDNN, channels last, fp16", dtype=torch.float16, tape=ChannelsLast),
    Way("as traced, contiguous", torch.contiguous_format, tape=Tape),
    Way("as traced, channels last", tape=Tape),
    Way("as traced, channels last, torch.compile", tape=Tape, compiled=True),
)


def chunk_loop(
    spec: VaeSpec, order: tuple[halves.Half, halves.Half], chunks: list[Tensor], way: Way, weights: Weights
) -> Tensor:
    """Both halves over all chunks: decoding's latents or encoding's frames in, the other out."""
    tape = way.tape or tape_for(device_sm(chunks[0].device) if chunks[0].is_cuda else None)
    run: Any = torch.compile(halves.run, dynamic=False) if way.compiled else halves.run
    height, width = chunks[0].shape[-2:]
    scale = spec.factor if order[0] == "encode_pixels" else 1
    start = {}
    for name, cache in halves.caches(spec, next(half for half in order if half.endswith("latent"))).items():
        shape = 1, cache.channels, cache.frames, height // scale, width // scale
        start[name] = torch.zeros(shape, dtype=way.dtype, device=chunks[0].device).contiguous(memory_format=way.layout)
    held: dict[str, Any] = {half: start if half.endswith("latent") else None for half in order}
    out = []
    for chunk in chunks:
        x = chunk.contiguous(memory_format=way.layout)
        for half in order:
            x, held[half] = run(half, x, held[half], weights, spec, tape)
        out.append(x.clamp(-1, 1) if half == "decode_pixels" else x)  # as diffusers does
    return torch.cat(out, 2)


def run_way(
    spec: VaeSpec, order: tuple[halves.Half, halves.Half], chunks: list[Tensor], way: Way, weights: Weights
) -> Callable[[], Tensor]:
    """The loop over weights as this way wants them."""
    if way.compiled:
        # torch.compile keeps eight variants of a function and runs what comes after them uncompiled: a size takes six.
        torch.compiler.reset()
    own = {
        name: w.to(w.dtype if name.endswith(".gamma") else way.dtype).contiguous(
            memory_format=way.layout if w.dim() == 5 else torch.contiguous_format
        )
        for name, w in weights.items()
    }

    def loop() -> Tensor:
        with torch.no_grad():
            return chunk_loop(spec, order, chunks, way, own)

    return loop


def diffusers_vae(spec: VaeSpec, weights: Weights, device: torch.device) -> Any:
    """AutoencoderKLWan in bf16 with these weights. Raises ImportError."""
    import diffusers

    make: Any = diffusers.AutoencoderKLWan
    with torch.device(device):
        model = make(
            base_dim=spec.base, z_dim=spec.latent, dim_mult=list(spec.multipliers), num_res_blocks=spec.residuals
        )
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[vae_name(name, spec)])
    return model


def bench_vae(model: ModelSpec, sizes: list[tuple[int, int, int]], watch: Stopwatch) -> None:
    """Decode latents (T, H, W) of each size in every way; encode a video of the first size in the one that counts."""
    spec, device = VAES[model.vae], watch.device
    table = {name: weight for half in halves.HALVES for name, weight in packed_weights(spec, half).items()}
    weights = random_weights(table, 0, str(device))
    generator = torch.Generator(device).manual_seed(1)
    oracle, why = opened(partial(diffusers_vae, spec, weights, device))
    for t, h, w in sizes:
        task = f"VAE decode {spec.factor * w}x{spec.factor * h}x{1 + CHUNK * (t - 1)}"
        z = torch.randn(1, spec.latent, t, h, w, device=device, generator=generator)
        ways = [way for way in WAYS if device.type == "cuda" or not way.needs_cuda]
        order: tuple[halves.Half, halves.Half] = ("decode_latent", "decode_pixels")
        ours = [run_way(spec, order, list(z.split(1, 2)), way, weights) for way in ways]
        theirs = None if oracle is None else partial(_decode, oracle, z.bfloat16())
        named = list(zip((way.name for way in ways), ours, strict=True))
        compare(watch, task, named, "diffusers", theirs, why)
    t, h, w = sizes[0]
    frames, pixels = 1 + CHUNK * (t - 1), (spec.factor * h, spec.factor * w)
    video = torch.zeros(1, 3, frames, *pixels, device=device)
    video[:, :, 0] = 2 * torch.rand(1, 3, *pixels, device=device, generator=generator) - 1
    chunks = [video[:, :, :1], *video[:, :, 1:].split(CHUNK, 2)] if t > 1 else [video]
    order = "encode_pixels", "encode_latent"
    ours = [run_way(spec, order, chunks, way, weights) for way in WAYS[:2]]
    theirs = None if oracle is None else partial(_encode, oracle, video.bfloat16())
    named = list(zip((way.name for way in WAYS), ours, strict=False))
    compare(watch, f"VAE encode {pixels[1]}x{pixels[0]}x{frames}", named, "diffusers", theirs, why)


def _decode(oracle: Any, latents: Tensor) -> Any:
    with torch.no_grad():
        return oracle.decode(latents).sample


def _encode(oracle: Any, frames: Tensor) -> Any:
    with torch.no_grad():
        return oracle.encode(frames).latent_dist.mode()
