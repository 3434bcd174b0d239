"""Costs against figures worked out by hand."""

from __future__ import annotations

import pytest

from plugins.cost import cost
from plugins.registry import OPS


def test_gemm() -> None:
    found = cost(OPS["BlockInt8Gemm"], {"M": 200, "N": 256, "K": 384}, {})
    assert found.operations == {"int8": 2 * 200 * 256 * 384}
    scales = 4 * (2 * 3 + 2 * 3)
    assert found.bytes == 200 * 384 + 256 * 384 + scales + 4 * 256 + 2 * 200 * 256


def test_only_what_is_needed_counts() -> None:
    """Of q|k|v an op reads its own columns; a whole tensor elsewhere."""
    found = cost(OPS["RmsNorm"], {"L": 10, "E": 512, "D": 256}, {})
    assert found.bytes == 2 * 10 * 256 + 4 * 256 + 2 * 10 * 256
    assert found.total == 0


@pytest.mark.parametrize(("milli", "keys"), [(100, 51 * 64), (1, 64), (1000, 32760)])
def test_sla_counts_the_kept_blocks(milli: int, keys: int) -> None:
    """At L = 32,760 there are 512 blocks of 64 keys, the last one short."""
    dims = {"L": 32760, "D": 1536, "E": 1536}
    found = cost(OPS["SageSLA"], dims, {"topk_milli": milli, "precision": "int8"})
    assert found.operations["int8"] == found.operations["fp8"] == 2 * 32760 * keys * 1536
    assert found.operations["fp16"] == 4 * 32760 * 128 * 1536
    assert found.bytes == 4 * 2 * 32760 * 1536 + 4 * (128 * 128 + 128)
    exact = cost(OPS["SageSLA"], dims, {"topk_milli": milli, "precision": "bf16"})
    assert set(exact.operations) == {"fp16"}
    assert exact.total == found.total
