"""The kernels of RTX parts (sm_80, 86, 89, and sm_120's configs) on a Hopper GPU: see exporter/bench/proxy.py.

Small sizes: it is values that are looked at, and these kernels are not fast there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from exporter.bench.proxy import HOPPER, RTX
from plugins.compile import build_plan
from plugins.cubin import inspected
from plugins.registry import OPS
from plugins.sage_attention.kernel import CONFIGS
from tests.support import op_checks as check
from tests.support.forward import run_kernels_of
from tests.support.op_checks import D, F


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
    check.gemm(length, D, D)
    check.gemm_gelu(length, F, D)
    check.gemm_residual(length, D, F)
    check.block_quantize(length, D)
    check.layer_norm_quantize(length, D)
    check.qk_norm_rope(length)
    check.rms_norm(length, 2 * D)


@pytest.mark.gpu
@on_a_part
@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("length", LENGTHS)
def test_attention(length: int, precision: str) -> None:
    check.sage_sla(length, precision)
    check.sage_attention(length, length, precision)
    check.sage_attention(length, 512, precision)
    check.attention_quantized("SageSLA", length, precision)
    check.attention_quantized("SageAttention", length, precision)


@pytest.mark.gpu
@on_a_part
def test_attention_sums() -> None:
    """FP16 sums at their largest, and more keys than 154,000, where others' FP8 attention turns to noise."""
    check.largest_sums()
    check.sage_attention(200, 160_001, "int8")


@pytest.mark.gpu
@on_a_part
def test_attention_without_a_maximum() -> None:
    check.scores_out_of_range()


@pytest.mark.parametrize("sm", [sm for precision, sm in CONFIGS if precision == "int8" and sm in RTX])
def test_the_ptx_of_rtx_parts_assembles_for_hopper(sm: int) -> None:
    """Without a GPU: what the tests above would run is made."""
    plan = build_plan(OPS["SageAttentionQuantize"], {"D": 256, "E": 256}, {"precision": "int8"}, sm, HOPPER)
    assert len(plan.kernels) == 4


@pytest.mark.parametrize("name", ["BlockInt8Gemm", "BlockInt8GemmGelu", "BlockInt8GemmResidual"])
def test_the_gemm_of_sm_120_has_its_tensor_copies_on_hopper(name: str) -> None:
    (kernel,) = build_plan(OPS[name], {"N": 384, "K": 256}, {}, 120, HOPPER).kernels
    assert kernel.name == "block_int8_gemm_bulk"
    assert "UTMALDG" in inspected(kernel.cubin, "nvdisasm", "-c")
    with pytest.raises(ValueError, match="needs sm_90; the host is sm_89"):
        build_plan(OPS[name], {"N": 384, "K": 256}, {}, 120, 89)
