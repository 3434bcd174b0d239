"""The table of SMs against figures known by heart, and what is derived from it."""

from __future__ import annotations

import pytest

from plugins.sms import SHARED_LIMIT, SMS, capability, cubin_sm, sm_number


def test_shared_memory_of_one_block() -> None:
    """What cudaDevAttrMaxSharedMemoryPerBlockOptin gives, in KiB."""
    assert SHARED_LIMIT == {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@pytest.mark.parametrize("sm", SMS)
def test_numbers_and_capabilities(sm: int) -> None:
    major, minor = capability(sm).split(".")
    assert sm_number(int(major), int(minor)) == sm == SMS[sm].number
    assert cubin_sm(sm) == sm


def test_gb10_runs_the_cubins_of_sm_120() -> None:
    assert cubin_sm(121) == 120
