"""The library's enqueue on a CUDA device: every op's plan gives the bits that it gives by the Python executor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from exporter.bench.proxy import RTX
from plugins import torch_op
from plugins.compile import plan_bytes
from plugins.registry import OPS
from tests.support import op_checks as check
from tests.support.forward import run_kernels_of
from tests.support.native_build import with_probe
from tests.support.native_gpu import BothWays, microseconds
from tests.support.op_checks import D, F

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

LENGTHS = (40, 200, 1000, 32760)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[BothWays]:
    made = BothWays(with_probe(), monkeypatch)
    yield made
    made.close()


def every_op(length: int) -> None:
    """What tests/plugins/test_gpu_ops.py looks at, at one length."""
    check.gemm(length, D, D)
    check.gemm(length, D, F)
    check.gemm_gelu(length, F, D)
    check.gemm_residual(length, D, F)
    check.block_quantize(length, D)
    check.block_quantize(length, F)
    for width in (640, 768, D, 5120):
        check.layer_norm_quantize(length, width)
    check.qk_norm_rope(length)
    check.rms_norm(length, D)
    check.rms_norm(length, 2 * D)
    for precision in ("int8", "bf16"):
        check.sage_sla(length, precision)
        check.sage_attention(length, length, precision)
        check.sage_attention(length, 512, precision)
        check.attention_quantized("SageSLA", length, precision)
        check.attention_quantized("SageAttention", length, precision)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_op_bit_for_bit(both: BothWays, length: int) -> None:
    every_op(length)
    assert set(both.compared) == set(OPS)


@pytest.mark.parametrize("sm", RTX, ids=lambda sm: f"sm_{sm}")
def test_kernels_of_rtx_parts_bit_for_bit(both: BothWays, monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    """From their PTX, as tests/plugins/test_gpu_forward.py has them."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no Hopper GPU")
    run_kernels_of(monkeypatch, sm)
    every_op(200)
    assert set(both.compared) == set(OPS)


def test_host_time_a_launch(figures: dict[str, Any]) -> None:
    """Most of it is the driver's: without one the library takes less than 0.1 µs a launch."""
    x = check.random(40, D).bfloat16()
    q, k, v = check.attention_inputs(40, 40, D)
    projection = torch.randn(128, 128, device="cuda") / 128**0.5, torch.randn(128, device="cuda")
    cases: dict[str, list[torch.Tensor]] = {
        "BlockInt8Quantize": [x],
        "RmsNorm": [x, check.random(D)],
        "LayerNormQuantize": [x, check.random(D), check.random(D)],
        "BlockInt8Gemm": check.operands(40, D, D),
        "SageSLAQuantize": [q, k, v, *projection],
    }
    for name, inputs in cases.items():
        op = OPS[name]
        symbols = op.bind([tuple(tensor.shape) for tensor in inputs])
        library, python = microseconds(plan_bytes(op, symbols, {}, torch_op.device_sm()), inputs, 20)
        figures[f"host µs a launch, {name}"] = {"library": round(library, 2), "python": round(python, 2)}
        assert library < python / 3, (name, library, python)
