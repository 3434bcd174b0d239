"""Checks of an op's compiled plan on a CUDA device against its reference there, at a size each.

Outputs and workspace start full of NaN (255 as bytes, the largest value as int8): what a kernel leaves out shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from plugins import torch_op
from plugins.block_int8_gemm.reference import product
from plugins.block_int8_quantize.op import OFF_BY_ONE
from plugins.block_int8_quantize.reference import reference as quantize
from plugins.op import AttrValue
from plugins.registry import OPS

#: Width and feed-forward width of Wan's 1.3B model.
D, F = 1536, 8960


def random(*shape: int) -> torch.Tensor:
    """fp32 with a spread by channel."""
    return torch.randn(*shape, device="cuda") * (1 + torch.rand(shape[-1], device="cuda"))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty fills with NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def call(name: str, *inputs: torch.Tensor, **attributes: AttrValue) -> tuple[torch.Tensor, ...]:
    """The op's outputs, every floating-point element of them finite."""
    with poisoned_memory():
        outputs = torch_op.call(name, *inputs, **attributes)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.cuda.synchronize()
    for spec, output in zip(OPS[name].outputs, outputs, strict=True):
        if output.is_floating_point():
            assert bool(output.isfinite().all()), f"{spec.name} is not finite or not fully written"
    return outputs


def reference(name: str, *inputs: torch.Tensor, **attributes: AttrValue) -> tuple[torch.Tensor, ...]:
    """The op's fp32 oracle on the same device."""
    outputs = torch_op.reference(OPS[name])(*inputs, **attributes)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def bound(name: str, **attributes: AttrValue) -> float:
    """The largest relative L2 of an op's output, from its declaration."""
    return OPS[name].bound(attributes).test


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    relative = float((got.float() - want.float()).norm() / want.float().norm())
    assert relative <= tolerance


def close_quantized(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    """Unwritten elements are 127, which a reference of blocks scaled to ±128 hardly ever holds."""
    (q, scale), (want_q, want_scale) = got, want
    assert q.shape == want_q.shape
    difference = (q.short() - want_q.short()).abs()
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) <= OFF_BY_ONE
    torch.testing.assert_close(scale, want_scale, rtol=1e-5, atol=0)


def operands(m: int, n: int, k: int) -> list[torch.Tensor]:
    x, weight = quantize(random(m, k)), quantize(random(n, k) / k**0.5)
    return [*x, *weight, torch.randn(n, device="cuda")]


def gemm(m: int, n: int, k: int) -> None:
    inputs = operands(m, n, k)
    close(call("BlockInt8Gemm", *inputs)[0], product(*inputs), bound("BlockInt8Gemm"))


def gemm_gelu(m: int, n: int, k: int) -> None:
    inputs = operands(m, n, k)
    close_quantized(call("BlockInt8GemmGelu", *inputs), reference("BlockInt8GemmGelu", *inputs))


def gemm_residual(m: int, n: int, k: int) -> None:
    inputs = operands(m, n, k)
    gate, residual = random(n), random(m, n).bfloat16()
    want = product(*inputs).mul_(gate).add_(residual)
    close(call("BlockInt8GemmResidual", *inputs, gate, residual)[0], want, bound("BlockInt8GemmResidual"))


def block_quantize(length: int, width: int) -> None:
    x = random(length, width).bfloat16()
    close_quantized(call("BlockInt8Quantize", x), reference("BlockInt8Quantize", x))


def layer_norm_quantize(length: int, width: int) -> None:
    inputs = (random(length, width).bfloat16() + 1, 1 + random(width) / 4, random(width))
    close_quantized(call("LayerNormQuantize", *inputs), reference("LayerNormQuantize", *inputs))


def qk_norm_rope(length: int) -> None:
    angle = 7 * torch.rand(length, 64, device="cuda")
    inputs = (random(length, 3 * D).bfloat16(), random(D), random(D), angle.cos(), angle.sin())
    for got, want in zip(call("QkNormRope", *inputs), reference("QkNormRope", *inputs), strict=True):
        close(got, want, bound("QkNormRope"))


def rms_norm(length: int, width: int) -> None:
    inputs = (random(length, width).bfloat16(), random(D))
    close(call("RmsNorm", *inputs)[0], reference("RmsNorm", *inputs)[0], bound("RmsNorm"))


def attention_inputs(length: int, keys: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v with a mean by channel, as projections with a bias have: over many keys v's mean is all that is left."""
    shapes = ((length, D), (keys, D), (keys, width))
    q, k, v = ((random(*shape) + torch.randn(shape[1], device="cuda")).bfloat16() for shape in shapes)
    return q, k, v


def sage_sla(length: int, precision: str) -> None:
    weight, bias = torch.randn(128, 128, device="cuda") / 128**0.5, torch.randn(128, device="cuda")
    inputs = (*attention_inputs(length, length, 3 * D), weight, bias)
    (got,) = call("SageSLA", *inputs, precision=precision)
    close(got, reference("SageSLA", *inputs)[0], bound("SageSLA", precision=precision))


def sage_attention(length: int, keys: int, precision: str) -> None:
    inputs = attention_inputs(length, keys, 2 * D)
    (got,) = call("SageAttention", *inputs, precision=precision)
    close(got, reference("SageAttention", *inputs)[0], bound("SageAttention", precision=precision))


def attention_quantized(op: str, length: int, precision: str) -> None:
    """The op with an INT8 output is the other's output, quantized: bf16 rounding moves an element by one at most."""
    inputs: tuple[torch.Tensor, ...] = attention_inputs(length, length, D)
    if op == "SageSLA":
        inputs += (torch.randn(128, 128, device="cuda") / 128**0.5, torch.randn(128, device="cuda"))
    (want,) = call(op, *inputs, precision=precision)
    got, scale = call(f"{op}Quantize", *inputs, precision=precision)
    expected, expected_scale = quantize(want)
    torch.testing.assert_close(scale, expected_scale, rtol=2**-8, atol=0)
    assert int((got.short() - expected.short()).abs().max()) <= 1


def largest_sums() -> None:
    """Equal v: their mean is v, however the rows are weighed. Scores rise by less than what moves the reference that
    probabilities are taken from, so that those of all but the first keys are about the largest there are.
    """
    q, k = torch.ones(128, D, device="cuda").bfloat16(), torch.full((1000, D), 0.1164, device="cuda").bfloat16()
    k[:64] = 0
    v = torch.tensor([-7.0, 0.5], device="cuda").repeat(D // 2).expand(1000, D).bfloat16().contiguous()
    (got,) = call("SageAttention", q, k, v, precision="int8")
    torch.testing.assert_close(got, v[:128], rtol=2**-5, atol=0)  # FP8 probabilities have three bits


def scores_out_of_range() -> None:
    """Sums of 2^score beyond fp32 and below it: a kernel that takes them without a maximum must notice."""
    for factor in (-30.0, 30.0):
        q, k = torch.rand(200, D, device="cuda") + 0.5, (torch.rand(300, D, device="cuda") + 0.5) * factor
        inputs = (q.bfloat16(), k.bfloat16(), random(300, D).bfloat16())
        (got,) = call("SageAttention", *inputs, precision="bf16")
        close(got, reference("SageAttention", *inputs)[0], bound("SageAttention", precision="bf16"))
