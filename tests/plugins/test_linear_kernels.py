"""The linear ops: references against written-out formulas, and their kernels in Triton's interpreter.

Not covered without a GPU: the Gluon kernels of sm_90 and of RTX parts' GEMM, which the interpreter does not know
(test_kernel_coverage.py has their names).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from plugins.block_int8_gemm.kernel import (
    CONFIGS,
    MMA_SMS,
    candidates,
    gelu_launch_plan,
    launch_plan,
    legal,
    residual_launch_plan,
)
from plugins.block_int8_gemm.reference import (
    gelu_reference,
    product,
    residual_reference,
)
from plugins.block_int8_gemm.reference import reference as gemm_reference
from plugins.block_int8_quantize.reference import reference as quantize
from plugins.compile import plan_bytes
from plugins.expr import evaluate, symbol
from plugins.layer_norm_quantize.reference import reference as layer_norm_quantize
from plugins.plan import decode
from plugins.registry import OPS
from plugins.rms_norm_rope.reference import qk_reference
from plugins.rms_norm_rope.reference import reference as rms_norm
from plugins.sms import GEFORCE_SMS
from tests.support.interpret import Case
from tests.support.interpret_linear import cases
from tests.support.interpreter_process import Interpreter

M, N, K = 130, 140, 144
BF16 = 2**-8  # relative: half a step of bf16 at the bottom of its binade


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def dequantized(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows, columns = (torch.arange(size) // 128 for size in q.shape)
    return q.double() * scale.double()[rows][:, columns]


def operands() -> list[torch.Tensor]:
    return [*quantize(torch.randn(M, K)), *quantize(torch.randn(N, K)), torch.randn(N)]


def test_quantize_reference() -> None:
    x = torch.randn(M, K)
    x[:, 128:] = 0
    x[0, 0] = -9.0
    q, scale = quantize(x)
    for i in range(2):
        block = x[128 * i : 128 * i + 128, :128]
        amax = float(block.abs().max())
        assert float(scale[i, 0]) == pytest.approx(amax / 128)
        assert float(scale[i, 1]) == pytest.approx(1e-8 / 128)
        for row, column in ((0, 0), (1, 127), (0, 5)):
            wanted = max(-128, min(127, round(float(block[row, column]) * (128 / amax))))
            assert int(q[128 * i + row, column]) == wanted
    assert int(q[0, 0]) == -128
    assert not q[:, 128:].any()


def test_quantize_saturates_and_rounds_half_to_even() -> None:
    q, scale = quantize(torch.tensor([[128.0, 0.5, 1.5, -2.5]]))
    assert q.tolist() == [[127, 0, 2, -2]]
    assert scale.tolist() == [[1.0]]


def test_gemm_references() -> None:
    x, x_scale, weight, weight_scale, bias = args = operands()
    want = dequantized(x, x_scale) @ dequantized(weight, weight_scale).T + bias.double()
    assert torch.allclose(product(*args).double(), want, rtol=1e-5, atol=1e-4)
    assert torch.allclose(gemm_reference(*args).double(), want, rtol=BF16, atol=1e-4)
    gate, residual = torch.randn(N), torch.randn(M, N).bfloat16()
    got = residual_reference(x, x_scale, weight, weight_scale, bias, gate, residual)
    assert torch.allclose(got.double(), residual.double() + gate.double() * want, rtol=BF16, atol=1e-4)
    gelu = want / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (want + 0.044715 * want**3)))
    q, scale = gelu_reference(*args)
    step = torch.ones_like(q).double() * dequantized(torch.ones_like(q), scale)
    saturation = (gelu - 127 * step).clamp_min(0)  # +amax is 128 steps, and becomes 127
    assert bool(((dequantized(q, scale) - gelu).abs() <= 0.501 * step + saturation).all())


def test_layer_norm_quantize_reference() -> None:
    x, weight, bias = torch.randn(M, K).bfloat16(), torch.randn(K), torch.randn(K)
    y = x.double()
    y = (y - y.mean(1, keepdim=True)) / ((y - y.mean(1, keepdim=True)).square().mean(1, keepdim=True) + 1e-6).sqrt()
    q, scale = layer_norm_quantize(x, weight, bias)
    want_q, want_scale = quantize((y * weight + bias).float())
    assert torch.allclose(scale, want_scale, rtol=1e-5)
    assert int((q.int() - want_q.int()).abs().max()) <= 1


def test_rms_norm_and_rope_references() -> None:
    width = 256
    qkv, weights = torch.randn(3, 3 * width).bfloat16(), torch.randn(2, width)
    angle = 7 * torch.rand(3, 64)
    got = qk_reference(qkv, weights[0], weights[1], angle.cos(), angle.sin())
    for part in range(2):
        x = qkv[:, part * width : (part + 1) * width].double()
        y = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * weights[part]
        if part == 0:
            assert torch.allclose(rms_norm(qkv, weights[0]).double(), y, rtol=BF16, atol=1e-6)
        pairs = torch.view_as_complex(y.view(3, width // 128, 64, 2))
        turned = pairs * torch.polar(torch.ones(3, 64), angle)[:, None].to(pairs.dtype)
        assert torch.allclose(got[part].double(), torch.view_as_real(turned).view(3, width), rtol=BF16, atol=1e-5)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_kernels_in_the_interpreter(case: Case, interpreter: Interpreter) -> None:
    interpreter.run(case)


@pytest.mark.parametrize("sm", MMA_SMS)
def test_configs_of_rtx_parts(sm: int) -> None:
    offered = list(candidates(sm))
    assert CONFIGS[sm] in offered
    assert {legal(config, sm) for config in offered} == {None}
    for other in (90, 80 if sm == 120 else 120):
        assert {legal(config, other) is None for config in offered} <= {other == 120}
    warps = 12 - CONFIGS[sm].num_warps
    for wrong in ({"num_warps": warps}, {"num_stages": 3}, {"early": 8}, {"tile_m": 256}, {"tile_n": 64}):
        assert legal(replace(CONFIGS[sm], **wrong), sm) is not None


@pytest.mark.parametrize(
    ("n", "k", "kernel", "programs"),
    [
        (384, 256, "block_int8_gemm_bulk", 16),
        (8960, 144, "block_int8_gemm_bulk", GEFORCE_SMS),
        (392, 256, "block_int8_gemm_mma", 32),
        (384, 128, "block_int8_gemm", 24),
    ],
)
def test_sizes_choose_the_kernel_of_sm_120(n: int, k: int, kernel: str, programs: int) -> None:
    """The weights' tensor map has 64 rows a step, and x is asked for two K blocks ahead."""
    plan = launch_plan({"M": symbol("M"), "N": n, "K": k}, {}, 120)
    (launch,) = plan.launches
    assert launch.kernel.__name__ == kernel
    assert evaluate(launch.grid[0], {"M": 1000}) == programs
    maps = [[evaluate(dim, {"M": 1000}) for dim in buffer.shape] for buffer in plan.buffers]
    assert maps == ([[programs, 256]] if kernel.endswith("bulk") else [])


@pytest.mark.parametrize(("epilogue", "exact"), [("bias", False), ("residual", False), ("gelu", True)])
def test_what_is_quantized_again_is_summed_exactly(epilogue: str, exact: bool) -> None:
    plan = {"bias": launch_plan, "residual": residual_launch_plan, "gelu": gelu_launch_plan}[epilogue]
    (launch,) = plan({"M": symbol("M"), "N": 256, "K": 384}, {}, 120).launches
    assert launch.constants["EXACT"] is exact


@pytest.mark.parametrize("width", [16, 64, 128, 144])
def test_any_width_compiles(width: int) -> None:
    """Of a single K block, too, which the kernels of mma.sync do not take."""
    plan = decode(plan_bytes(OPS["BlockInt8Gemm"], {"N": 64, "K": width}, {}, 120))
    assert [kernel.name for kernel in plan.kernels] == ["block_int8_gemm" + ("_bulk" if width > 128 else "")]


def test_sums_with_an_offset_are_the_sums() -> None:
    """mma_kernel.py's arithmetic in numpy's fp32: int32 sums from 2^21 on, read as denormals, the largest ones too."""
    rng = np.random.default_rng(0)
    sums = rng.normal(0, 1e4, (108, 1000)).astype(np.int32)
    sums[3, 0], sums[4, 0] = 128 * 128 * 128, -128 * 127 * 128
    scale = (rng.uniform(0.5, 1.5, 108) * 1e-4).astype(np.float32) * np.float32(2.0**96)
    acc, scales = np.zeros(1000, np.float64), np.float32(0)
    for k in range(108):
        read = (sums[k] + 2**21).view(np.float32)
        # A fused multiply-add: exact product, one rounding.
        acc = (acc + read.astype(np.float64) * np.float64(scale[k])).astype(np.float32).astype(np.float64)
        scales = np.float32(scales + scale[k])
        if k % 4 == 3:
            acc = (acc - np.float64(scales) * 2.0**-128).astype(np.float32).astype(np.float64)
            scales = np.float32(0)
    want = (sums.astype(np.float64) * (scale.astype(np.float64) * 2.0**-96)[:, None]).sum(0)
    assert np.linalg.norm(acc * 2.0**53 - want) <= 3e-5 * np.linalg.norm(want)
