"""Engines for another largest size than a model's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exporter.models import MODELS, MOST_TOKENS, sized
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import dit_stages
from exporter.spec import parse_max_size
from plugins.errors import UserError
from plugins.sage_sla.kernel import MAX_BLOCKS

SMALL, LARGE = MODELS["wan2.1-1.3b-480p"], MODELS["wan2.1-14b-720p"]


def profiles(model: object) -> set[tuple[int, int, int]]:
    assert isinstance(model, type(SMALL))
    return {stage.profile for stage in dit_stages(model, BlockOptions())}


def test_a_480p_model_runs_720p() -> None:
    """The same profile as a 720p model's own, tuned for the default size that the name says."""
    made = sized(SMALL, 1280, 720)
    assert (made.size, made.frames) == ((832, 480), 81)
    assert made.max_tokens == LARGE.max_tokens == 80_640
    assert profiles(made) == {(16, 32_760, 80_640)}
    assert profiles(SMALL) == {(16, 32_760, 34_560)}  # nothing grows that was not asked for


def test_a_720p_model_for_480p_alone() -> None:
    """Its default video does not fit any more: the largest is the default then."""
    made = sized(LARGE, 832, 480)
    assert (made.size, made.frames) == ((832, 480), 81)
    assert profiles(made) == {(16, 32_760, 34_944)}
    assert made.max_size == (832, 480, 81)


def test_more_frames() -> None:
    assert sized(SMALL, 832, 480, 121).max_tokens == 51_584  # 31 · 30 · 52 = 48,360 and a fifteenth
    assert sized(SMALL, 832, 480, 121).frames == 81


def test_the_models_own_size_changes_nothing() -> None:
    assert sized(SMALL, 832, 480) is SMALL
    assert sized(SMALL, 480, 832) is SMALL


def test_no_more_than_attention_runs() -> None:
    assert MOST_TOKENS == MAX_BLOCKS * 64
    largest = sized(SMALL, 1280, 720, 133)  # 34 · 45 · 80 = 122,400: a fifteenth more would be 130,560
    assert largest.max_tokens == 130_560
    assert sized(SMALL, 1280, 720, 137).max_tokens == MOST_TOKENS
    with pytest.raises(UserError, match="131,072"):
        sized(SMALL, 1280, 720, 145)


def test_a_models_facts_are_its_own_otherwise() -> None:
    made = sized(SMALL, 1280, 720)
    assert replace(made, max_tokens=SMALL.max_tokens, max_size=None) == SMALL


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("1280x720", (1280, 720)), ("1280X720x81", (1280, 720, 81)), ("1280×720", (1280, 720)), ("1280*720", (1280, 720))],
)
def test_max_size_is_read(text: str, parsed: tuple[int, ...]) -> None:
    assert parse_max_size(text) == parsed


@pytest.mark.parametrize("text", ["", "1280", "1280x", "x720", "1280x720x81x1", "-1x720", "1280 720", "٣x٣", "9" * 400])
def test_max_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--max-size"):
        parse_max_size(text)
