"""Every op's compiled plan on a CUDA device against its reference there, at the sizes of Wan's 1.3B and 14B models."""

from __future__ import annotations

import pytest

from tests.support import op_checks as check
from tests.support.op_checks import D, F

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

LENGTHS = (40, 200, 1000, 32760)
#: (M, N, K) of the GEMMs: a square one and both of the feed-forward at 1.3B's width, and 720p at 14B's.
GEMM_SIZES = [(m, n, k) for m in LENGTHS for n, k in ((D, D), (F, D), (D, F))] + [(75600, 5120, 5120)]


@pytest.mark.parametrize(("m", "n", "k"), GEMM_SIZES)
def test_block_int8_gemm(m: int, n: int, k: int) -> None:
    check.gemm(m, n, k)


@pytest.mark.parametrize(("m", "n", "k"), GEMM_SIZES)
def test_block_int8_gemm_gelu(m: int, n: int, k: int) -> None:
    check.gemm_gelu(m, n, k)


@pytest.mark.parametrize(("m", "n", "k"), GEMM_SIZES)
def test_block_int8_gemm_residual(m: int, n: int, k: int) -> None:
    check.gemm_residual(m, n, k)


@pytest.mark.parametrize("width", [D, F])
@pytest.mark.parametrize("length", LENGTHS)
def test_block_int8_quantize(length: int, width: int) -> None:
    check.block_quantize(length, width)


@pytest.mark.parametrize("width", [640, 768, D, 5120])  # sm_90: two passes; one, two and four warps
@pytest.mark.parametrize("length", [1, 127, 130, *LENGTHS])
def test_layer_norm_quantize(length: int, width: int) -> None:
    check.layer_norm_quantize(length, width)


@pytest.mark.parametrize("length", LENGTHS)
def test_qk_norm_rope(length: int) -> None:
    check.qk_norm_rope(length)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("width", [D, 2 * D])
def test_rms_norm(length: int, width: int) -> None:
    check.rms_norm(length, width)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("length", LENGTHS)
def test_sage_sla(length: int, precision: str) -> None:
    check.sage_sla(length, precision)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("keys", [None, 512], ids=["self", "text"])
@pytest.mark.parametrize("length", LENGTHS)
def test_sage_attention(length: int, keys: int | None, precision: str) -> None:
    check.sage_attention(length, keys or length, precision)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("op", ["SageSLA", "SageAttention"])
def test_attention_quantized(op: str, length: int, precision: str) -> None:
    check.attention_quantized(op, length, precision)
