"""Homes that cannot be written: Triton compiles into a temporary folder, and one line says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from plugins import triton_cache
from plugins.errors import Notice


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("folder", ["/proc/no/cache", "~/.triton/cache"], ids=["read-only", "no-home"])
def test_a_temporary_cache_and_one_line(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    triton_cache._usable.cache_clear()
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        with pytest.warns(Notice, match="TRITON_CACHE_DIR names another") as told:
            triton_cache.writable_cache()
        assert len(told) == 1
        used = triton.knobs.cache.dir
        assert used != folder
        assert os.access(used, os.W_OK)
        triton_cache.writable_cache()  # says nothing more: every warning is an error here
    assert list(tmp_path.iterdir()) == [], "a folder called ~ was made here"


def test_a_cache_that_can_be_written_is_kept(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "new" / "cache")
        triton_cache.writable_cache()
        assert triton.knobs.cache.dir == str(tmp_path / "new" / "cache")
    assert list(recwarn) == []
