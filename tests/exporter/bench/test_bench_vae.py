"""turbotrt bench vae on the CPU: every convolution of a chunk is in a row, with its own bytes and operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from exporter.bench import vae_layers
from exporter.bench.vae_layers import Ceilings, bench_layers, lines
from exporter.models import MODELS
from tests.support.progress import SilentProgress

H, W = 2, 3


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    found = bench_layers(MODELS["wan-tiny"], [(H, W)], torch.device("cpu"), 1, SilentProgress())
    assert found["sizes"][0]["size"] == f"{8 * W}x{8 * H}, 4 frames"
    assert found["bandwidth_gb_s"] > 0
    assert found["bf16_tflops"] > 0
    made: list[dict[str, Any]] = found["sizes"][0]["rows"]
    return made


def test_every_layer_is_there_once(rows: list[dict[str, Any]]) -> None:
    """Wan2.1-tiny: five residuals at the first resolution and two at each of three more, upsampling, entry and head."""
    calls = {row["layer"]: row["calls"] for row in rows if "calls" in row}
    assert sum(calls.values()) == 1 + 2 * (2 + 2 + 2 * 3) + 2 + 3 + 1
    assert sum(count for layer, count in calls.items() if "upsampled" in layer) == 3
    assert sum(count for layer, count in calls.items() if "added" in layer) == 10
    *timed, rest, whole = rows
    assert rest["ms"] >= 0
    assert whole["ms"] == pytest.approx(rest["ms"] + sum(row["ms"] for row in timed))


def test_a_layers_bytes_and_operations(rows: list[dict[str, Any]]) -> None:
    """By hand: the last upsampling, 16 → 8 channels of four frames, and a residual's second convolution behind it."""
    found = {row["layer"]: row for row in rows}
    up = found[f"3×3, upsampled: 4×{4 * H}×{4 * W}, 16 → 8"]
    positions = 4 * 4 * H * 4 * W
    assert up["operations"] == 2 * 4 * positions * 8 * 16 * 4  # of nine taps four are left
    assert up["bytes"] == 2 * (positions * 16 + 4 * positions * 8 + 8 * 16 * 9)
    onto = found[f"3×3×3, added: 4×{8 * H}×{8 * W}, 8 → 8"]
    frame = 8 * H * 8 * W * 8
    assert onto["operations"] == onto["calls"] * 2 * 4 * frame * 8 * 27
    assert onto["bytes"] == onto["calls"] * 2 * (3 * 4 * frame + 2 * 2 * frame + 8 * 8 * 27)


def test_the_limit_is_the_slower_of_two() -> None:
    ceilings = Ceilings(bandwidth=1000, rate=100)
    assert ceilings.ms(nbytes=10**9, operations=10) == pytest.approx(1)
    assert ceilings.ms(nbytes=10, operations=10**12) == pytest.approx(10)


def test_the_table_has_a_line_for_each_row(rows: list[dict[str, Any]]) -> None:
    shown = list(lines(rows))
    assert [cells[0] for cells in shown] == [row["layer"] for row in rows]
    assert {len(cells) for cells in shown} == {7}
    assert shown[-1][0] == "a chunk"
    assert vae_layers._REST in {cells[0] for cells in shown}
