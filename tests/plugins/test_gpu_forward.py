"""The kernels of RTX parts (sm_80, 86, 89, and sm_120's configs) on a Hopper GPU: see forward.py. Small sizes: it is
values that are looked at, and these kernels are not fast there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from plugins.compile import build_plan
from plugins.registry import OPS
from plugins.sage_attention.kernel import CONFIGS
from tests.plugins import test_gpu_ops as ops
from tests.support.forward import RTX, forward_compile, run_kernels_of


@pytest.fixture(params=RTX, ids=lambda sm: f"sm_{sm}")
def _part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no Hopper GPU")
    run_kernels_of(monkeypatch, request.param)
    torch.manual_seed(0)
    yield
    torch.cuda.empty_cache()


on_a_part = pytest.mark.usefixtures("_part")
LENGTHS = (200, 1000)


@pytest.mark.gpu
@on_a_part
@pytest.mark.parametrize("length", LENGTHS)
def test_linear_ops(length: int) -> None:
    ops.test_block_int8_gemm(length, ops.D, ops.D)
    ops.test_block_int8_gemm_gelu(length, ops.F, ops.D)
    ops.test_block_int8_gemm_residual(length, ops.D, ops.F)
    ops.test_block_int8_quantize(length, ops.D)
    ops.test_layer_norm_quantize(length)
    ops.test_qk_norm_rope(length)
    ops.test_rms_norm(length, 2 * ops.D)


@pytest.mark.gpu
@on_a_part
@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("length", LENGTHS)
def test_attention(length: int, precision: str) -> None:
    ops.test_sage_sla(length, precision)
    ops.test_sage_attention(length, None, precision)
    ops.test_sage_attention(length, 512, precision)
    ops.test_attention_quantized("SageSLA", length, precision)
    ops.test_attention_quantized("SageAttention", length, precision)


@pytest.mark.parametrize("sm", [sm for precision, sm in CONFIGS if precision == "int8" and sm in RTX])
def test_the_ptx_of_rtx_parts_assembles_for_hopper(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what the tests above would run is made."""
    monkeypatch.setattr(triton, "compile", forward_compile(triton.compile))
    plan = build_plan(OPS["SageAttentionQuantize"], {"D": 256, "E": 256}, {"precision": "int8"}, sm)
    assert len(plan.kernels) == 4
