"""The linear ops' plans under Triton's interpreter against their references: cases(), each a test of its own.

Sizes are odd on purpose: partial row blocks, partial column blocks (GEMM's N and K) and D below a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import torch

from plugins.block_int8_quantize.op import OFF_BY_ONE
from plugins.block_int8_quantize.reference import reference as quantized
from plugins.dtypes import DTYPES
from plugins.expr import evaluate, symbol
from plugins.op import Op
from plugins.registry import OPS
from tests.support.interpret import Case, case, run_plan

SM = 100  # whose kernels are plain Triton, all of them
M, N, K, L, D = 130, 200, 272, 130, 256
#: Relative L2 of bf16 outputs: a few elements fall to the other side of a tie of bf16.
BF16_TOLERANCE = 1e-4
POISON = -113  # in int8 outputs, which have no NaN


def random(*shape: int) -> torch.Tensor:
    """fp32 with a spread by column."""
    return torch.randn(*shape) * (1 + torch.rand(shape[-1]))


def operands(k: int = K) -> list[torch.Tensor]:
    return [*quantized(random(M, k)), *quantized(random(N, k) / k**0.5), torch.randn(N)]


def check(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype), name
    if got.dtype == torch.int8:
        difference = (got.int() - want.int()).abs()
        share = float((difference > 0).float().mean())
        assert int(difference.max()) <= 1, f"{name}: off by {difference.max()}"
        assert share <= OFF_BY_ONE, f"{name}: {share:.2%} are off by one"
    elif got.dtype == torch.float32:
        assert torch.allclose(got, want, rtol=1e-5, atol=0), f"{name}: scales {got} not {want}"
    else:
        relative = float((got.float() - want.float()).norm() / want.float().norm())
        assert relative <= BF16_TOLERANCE, f"{name}: error {relative:.2e}, tolerance {BF16_TOLERANCE}"


def poisoned(op: Op, symbols: dict[str, int]) -> dict[str, torch.Tensor]:
    """Outputs full of NaN or POISON."""
    outputs = {}
    for spec in op.outputs:
        dtype = getattr(torch, DTYPES[spec.dtype].torch)
        shape = [evaluate(dim, symbols) for dim in spec.dims]
        outputs[spec.name] = torch.full(shape, float("nan") if dtype.is_floating_point else POISON, dtype=dtype)
    return outputs


def run(name: str, inputs: list[torch.Tensor]) -> None:
    op = OPS[name]
    symbols = op.bind([tuple(tensor.shape) for tensor in inputs])
    dims = {s: symbol(s) if s in op.dynamic else value for s, value in symbols.items()}
    plan = getattr(import_module(f"plugins.{op.folder}.kernel"), op.plan_function)(dims, {}, SM)
    outputs = poisoned(op, symbols)
    run_plan(plan, {t.name: value for t, value in zip(op.inputs, inputs, strict=True)} | outputs, symbols)
    want = getattr(import_module(f"plugins.{op.folder}.reference"), op.reference_function)(*inputs)
    for spec, value in zip(op.outputs, want if isinstance(want, tuple) else (want,), strict=True):
        check(f"{name} {symbols} {spec.name}", outputs[spec.name], value)


def gemm() -> None:
    run("BlockInt8Gemm", operands())


def gemm_gelu() -> None:
    run("BlockInt8GemmGelu", operands())


def gemm_residual() -> None:
    run("BlockInt8GemmResidual", [*operands(), torch.randn(N), random(M, N).bfloat16()])


def block_quantize() -> None:
    run("BlockInt8Quantize", [random(M, K).bfloat16()])


def block_quantize_zeros() -> None:
    run("BlockInt8Quantize", [torch.zeros(M, K).bfloat16()])


def layer_norm_quantize(width: int) -> None:
    run("LayerNormQuantize", [random(L, width).bfloat16() + 1, 1 + torch.randn(width), torch.randn(width)])


def rms_norm(width: int) -> None:
    run("RmsNorm", [random(L, width).bfloat16(), torch.randn(D)])


def qk_norm_rope(width: int) -> None:
    angle = 7 * torch.rand(L, 64)
    weights = [torch.randn(width), torch.randn(width)]
    run("QkNormRope", [random(L, 3 * width).bfloat16(), *weights, angle.cos(), angle.sin()])


def cases() -> Iterator[Case]:
    for function in (gemm, gemm_gelu, gemm_residual, block_quantize, block_quantize_zeros):
        yield case(function)
    for width in (D, N):
        yield case(layer_norm_quantize, width)
    for width in (D, 2 * D):
        yield case(rms_norm, width)
    for width in (D, 384):
        yield case(qk_norm_rope, width)
