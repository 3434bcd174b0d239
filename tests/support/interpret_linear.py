"""The linear ops' plans under Triton's interpreter against their references: one line a case, run by a test.

Sizes are odd on purpose: partial row blocks, partial column blocks (GEMM's N and K) and D below a power of two.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from importlib import import_module

import torch

from plugins.block_int8_quantize.op import OFF_BY_ONE
from plugins.dtypes import DTYPES
from plugins.expr import evaluate, symbol
from plugins.op import Op
from plugins.registry import OPS
from tests.support import interpreter_numbers  # noqa: F401
from tests.support.interpret import run_plan, tell_kernels

SM = 80
M, N, K, L, D = 130, 200, 272, 130, 256
#: Relative L2 of bf16 outputs: a few elements fall to the other side of a tie of bf16.
BF16_TOLERANCE = 1e-4
POISON = -113  # in int8 outputs, which have no NaN


def random(*shape: int) -> torch.Tensor:
    """fp32 with a spread by column."""
    return torch.randn(*shape) * (1 + torch.rand(shape[-1]))


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return import_module("plugins.block_int8_quantize.reference").reference(x)


def operands(k: int = K) -> list[torch.Tensor]:
    return [*quantized(random(M, k)), *quantized(random(N, k) / k**0.5), torch.randn(N)]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


def check(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    require(got.shape == want.shape and got.dtype == want.dtype, f"{name}: {got.shape} {got.dtype}")
    if got.dtype == torch.int8:
        difference = (got.int() - want.int()).abs()
        share = float((difference > 0).float().mean())
        require(int(difference.max()) <= 1 and share <= OFF_BY_ONE, f"{name}: off by {difference.max()}, {share:.2%}")
    elif got.dtype == torch.float32:
        require(torch.allclose(got, want, rtol=1e-5, atol=0), f"{name}: scales {got} not {want}")
    else:
        relative = float((got.float() - want.float()).norm() / want.float().norm())
        require(relative <= BF16_TOLERANCE, f"{name}: error {relative:.2e}, tolerance {BF16_TOLERANCE}")


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
    print(f"{name} {symbols}: ok")


def main() -> None:
    torch.manual_seed(0)
    run("BlockInt8Gemm", operands())
    run("BlockInt8GemmGelu", operands())
    run("BlockInt8GemmResidual", [*operands(), torch.randn(N), random(M, N).bfloat16()])
    run("BlockInt8Quantize", [random(M, K).bfloat16()])
    run("BlockInt8Quantize", [torch.zeros(M, K).bfloat16()])
    for width in (D, N):
        run("LayerNormQuantize", [random(L, width).bfloat16() + 1, 1 + torch.randn(width), torch.randn(width)])
    for extra in (0, D):
        run("RmsNorm", [random(L, D + extra).bfloat16(), torch.randn(D)])
    for width in (D, 384):
        angle = 7 * torch.rand(L, 64)
        weights = [torch.randn(width), torch.randn(width)]
        run("QkNormRope", [random(L, 3 * width).bfloat16(), *weights, angle.cos(), angle.sin()])
    tell_kernels()


if __name__ == "__main__":
    main()
