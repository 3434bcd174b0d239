"""The VAE as the torch backend runs it on CUDA, on the CPU: the same function in another memory format."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from exporter.models import MODELS
from exporter.networks.vae import halves
from exporter.networks.vae.channels_last import FORMAT, ChannelsLast
from exporter.networks.vae.halves import Half
from exporter.networks.vae.hopper_tape import HopperTape
from exporter.networks.vae.layers import Tape
from exporter.networks.vae.spec import VaeSpec
from exporter.networks.vae.stages import vae_stages
from exporter.networks.vae.weights import packed_weights
from exporter.torch_backend.memory import meta_tensors
from exporter.torch_backend.runner import run_stage, stage_peak
from tests.support.interpret import Case
from tests.support.interpret_vae import cases
from tests.support.interpreter_process import Interpreter
from tests.support.media_bundle import random_tensors, vae_table

SPEC = VaeSpec(name="test", base=8, residuals=2)
H, W = 4, 6
STARTS: dict[Half, tuple[int, int, int]] = {
    "decode_latent": (16, 1, 1),
    "decode_pixels": (SPEC.top, 1, 1),
    "encode_pixels": (3, 4, 8),
    "encode_latent": (SPEC.top, 1, 1),
}


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("tape", [ChannelsLast, HopperTape])
@pytest.mark.parametrize("half", STARTS)
@torch.no_grad()
def test_it_is_the_traced_function(half: Half, tape: type[ChannelsLast]) -> None:
    """fp32, three chunks: outputs and every cache, which are written where they are wanted."""
    weights = {name: w.float() for name, w in random_tensors(packed_weights(SPEC, half), 3).items()}
    channels, count, scale = STARTS[half]
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name: (1, c.channels, c.frames, c.scale * H, c.scale * W) for name, c in halves.caches(SPEC, half).items()
    }
    plain = before = None
    if not half.endswith("pixels"):
        plain = before = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for frames in (1, count, count):
        x = torch.randn(1, channels, frames, scale * H, scale * W, generator=generator)
        into = {name: torch.empty(shape).contiguous(memory_format=FORMAT) for name, shape in shapes.items()}
        want, plain = halves.run(half, x, plain, weights, SPEC)
        last = x.contiguous(memory_format=FORMAT)
        got, kept = halves.run(half, last, before, weights, SPEC, partial(tape, into=into))
        assert distance(got, want) < 1e-5
        for name, cache in plain.items():
            assert kept[name].shape == cache.shape
            assert distance(kept[name], cache) < 1e-5 or not cache.any(), name
        assert before is None or all(into[name] is kept[name] for name in shapes)
        before = {name: into[name].copy_(kept[name]) for name in shapes}


def test_convolutions_are_given_what_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input in the right memory format, so that nothing is copied, and channels in multiples of eight."""
    seen = []
    convolve = {name: getattr(torch.nn.functional, name) for name in ("conv2d", "conv3d")}

    def watch(name: str, x: torch.Tensor, weight: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        last = torch.channels_last if name == "conv2d" else FORMAT
        assert x.is_contiguous(memory_format=last) or x[:, :, 2:].is_contiguous(memory_format=last), x.stride()
        assert weight.is_contiguous(memory_format=last)
        seen.append((name, weight.shape[0] % 8, weight.shape[1] % 8))
        return convolve[name](x, weight, *args, **options).contiguous(memory_format=last)  # as cuDNN's is

    for name in convolve:
        monkeypatch.setattr(torch.nn.functional, name, partial(watch, name))
    for half, (channels, frames, scale) in STARTS.items():
        weights = {name: w.float() for name, w in random_tensors(packed_weights(SPEC, half), 3).items()}
        before = None
        for count in (1, frames) if half.endswith("pixels") else ():
            x = torch.randn(1, channels, count, scale * H, scale * W).contiguous(memory_format=FORMAT)
            with torch.no_grad():
                _, before = halves.run(half, x, before, weights, SPEC, ChannelsLast)
    assert {place[1:] for place in seen} == {(0, 0)}
    assert {place[0] for place in seen} == {"conv2d", "conv3d"}


@pytest.mark.parametrize("tape", [ChannelsLast, HopperTape])
@torch.no_grad()
def test_the_runners_way_chunk_after_chunk(tape: type[Tape]) -> None:
    """Caches pass through raw memory in another order; frames come out as without it."""
    model = MODELS["wan-tiny"]
    first, following = (s for s in vae_stages(SPEC, model) if s.name in ("decode_first", "decode_next"))
    weights = random_tensors(vae_table(model) | packed_weights(SPEC, "decode_pixels"), 5)
    sizes = {"H": H, "W": W}

    def frames(tape: type[Tape]) -> torch.Tensor:
        held: dict[str, torch.Tensor] = {}
        out = []
        generator = torch.Generator().manual_seed(0)
        for stage in (first, following, following):
            given = {"chunk": torch.randn(1, SPEC.top, 1, H, W, generator=generator).bfloat16(), **held}
            entry = stage.entry("no.onnx")
            wanted = {name: torch.empty_like(x, device="cpu") for name, x in meta_tensors(entry, sizes)[1].items()}
            run_stage(entry, stage.function, {**given, **weights}, wanted, tape)
            held = {name: x for name, x in wanted.items() if name.startswith("cache.")}
            out.append(wanted["chunk"].float())
        return torch.cat(out) - 127.5

    want = frames(Tape)
    assert distance(frames(tape), want) < 2e-2  # bf16, roundings in another order
    assert want.std() > 6


def test_it_takes_less_memory() -> None:
    """No copy of a frame in fp32 for the norm: the plan by which tiles are chosen says so too."""
    (following,) = (s for s in vae_stages(VaeSpec(name="full", base=96), MODELS["wan-tiny"]) if s.name == "decode_next")
    sizes = {"H": 60, "W": 104}
    entry, function = following.entry("no.onnx"), following.function
    cpu, cudnn, hopper = (stage_peak(entry, function, sizes, sm) for sm in (None, 80, 90))
    assert cudnn < 0.8 * cpu
    assert hopper < cudnn


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_the_kernel_in_the_interpreter(case: Case, interpreter: Interpreter) -> None:
    interpreter.run(case)


@pytest.mark.parametrize("sm", [80, 90, 120])
def test_the_kernel_compiles_where_no_gpu_is(sm: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from exporter.networks.vae.norm_kernel import norm_silu_kernel

    signature = {"x_ptr": "*bf16", "gamma_ptr": "*fp32", "out_ptr": "*bf16", "end_ptr": "*bf16"}
    signature |= {"rows": "i32", "end_rows": "i32", "scale": "fp32"}
    constants = {"C": 96, "WIDE": 128, "ROWS": 32}
    source = ASTSource(norm_silu_kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": 4})
    assert len(made.asm["cubin"]) > 1000
    assert "ld.local" not in made.asm["ptx"]  # nothing spilled into the stack
