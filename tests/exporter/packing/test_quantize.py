"""Block-128 quantization against the formula written out as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exporter.checkpoint.finite import all_finite
from exporter.packing.quantize import block_dequantize, block_quantize
from plugins.errors import UserError


def _by_loops(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The rule of the specification, one block and one element at a time, in numpy's fp32."""
    x = weight.to(torch.float32).numpy()
    n, k = x.shape
    q = np.zeros((n, k), np.int8)
    scale = np.zeros((math.ceil(n / 128), math.ceil(k / 128)), np.float32)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            rows, columns = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            amax = max(np.float32(np.abs(x[rows, columns]).max()), np.float32(1e-8))
            scale[i, j] = amax / np.float32(128)
            factor = np.float32(128) / amax
            for r in range(128 * i, min(128 * i + 128, n)):
                for c in range(128 * j, min(128 * j + 128, k)):
                    q[r, c] = min(max(round(float(x[r, c] * factor)), -128), 127)
    return q, scale


@pytest.mark.parametrize("shape", [(130, 257), (128, 128), (1, 1), (127, 384), (300, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_the_loops(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.03).to(dtype)
    q, scale = block_quantize(weight)
    want_q, want_scale = _by_loops(weight)
    assert (q.dtype, scale.dtype) == (torch.int8, torch.float32)
    np.testing.assert_array_equal(q.numpy(), want_q)
    np.testing.assert_array_equal(scale.numpy(), want_scale)


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn((700, 200), generator=torch.Generator().manual_seed(2))
    whole = block_quantize(weight)
    monkeypatch.setattr("exporter.packing.quantize._BAND_ELEMENTS", 1)
    banded = block_quantize(weight)
    assert all(torch.equal(a, b) for a, b in zip(whole, banded, strict=True))


def test_zero_block_and_short_blocks_have_their_own_scale() -> None:
    weight = torch.zeros(130, 257)
    weight[129, 256] = -3.0
    q, scale = block_quantize(weight)
    assert q[129, 256] == -128
    assert q.count_nonzero() == 1
    assert scale[1, 2] == 3.0 / 128
    assert scale[0, 0] == torch.tensor(1e-8) / 128


def test_halves_round_to_even_and_the_top_saturates() -> None:
    weight = torch.tensor([[128.0, -128.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.5, 126.5]])
    q, scale = block_quantize(weight)
    assert q.tolist() == [[127, -128, 0, 2, 2, 0, -2, -2, 127, 126]]
    assert scale.item() == 1.0


def test_dequantize_is_within_a_step() -> None:
    weight = torch.randn((130, 257), generator=torch.Generator().manual_seed(3))
    q, scale = block_quantize(weight)
    step = scale.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :257]
    error = (block_dequantize(q, scale) - weight).abs()
    assert bool((error <= step * torch.where(q == 127, 1.001, 0.501)).all())


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UserError, match=r"\[N, K\]"):
        block_quantize(torch.zeros(4))
    with pytest.raises(UserError, match="do not belong"):
        block_dequantize(torch.zeros((130, 4), dtype=torch.int8), torch.ones(1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen_anywhere(dtype: torch.dtype, value: float) -> None:
    assert all_finite(torch.empty(0, dtype=dtype))
    largest = torch.finfo(dtype).max
    for place in (0, 1, 63, 64, 998, 999):
        numbers = torch.full((10, 100), largest, dtype=dtype)
        numbers[3, 5], numbers[4, 6] = -largest, 0
        assert all_finite(numbers)
        numbers.view(-1)[place] = value
        assert not all_finite(numbers)
