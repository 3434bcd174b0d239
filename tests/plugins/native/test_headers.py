"""Where the library's headers come from: whole and looked at, or not at all."""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from plugins.native import headers

GOOD = {"a.h": b"a", "crt/b.h": b"b"}
HASHES = {name: (hashlib.sha256(data).hexdigest(), "0" * 64) for name, data in GOOD.items()}


def _given(found: dict[str, bytes]) -> headers.Fetch:
    return lambda _: found


def _none(_: Iterable[str]) -> dict[str, bytes]:
    raise headers.NoHeaders("not reached")


def test_the_first_source_with_all_headers_is_taken(tmp_path: Path) -> None:
    sources = {
        "down": _none,
        "partial": _given({"a.h": b"a"}),
        "changed": _given(GOOD | {"a.h": b"A"}),
        "good": _given(GOOD),
        "later": _none,
    }
    headers.fetch(tmp_path, HASHES, sources)
    assert {name: (tmp_path / name).read_bytes() for name in GOOD} == GOOD
    assert headers.complete(tmp_path, HASHES)
    (tmp_path / "a.h").write_bytes(b"A")
    assert not headers.complete(tmp_path, HASHES)
    assert not headers.complete(tmp_path / "none", HASHES)


def test_what_each_source_said_is_told(tmp_path: Path) -> None:
    sources = {"down": _none, "partial": _given({"a.h": b"a"}), "changed": _given(GOOD | {"a.h": b"A"})}
    with pytest.raises(headers.NoHeaders) as told:
        headers.fetch(tmp_path, HASHES, sources)
    first, second, third = str(told.value).splitlines()
    assert first == "  down: not reached"
    assert second == "  partial: crt/b.h is not among them"
    assert third.startswith("  changed: a.h is not the header that was looked at: sha256 ")
    assert list(tmp_path.iterdir()) == []


def test_the_official_repository_comes_before_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def offline(address: str, **_: Any) -> None:
        asked.append(address)
        raise urllib.error.URLError("offline")

    monkeypatch.setattr("urllib.request.urlopen", offline)

    def by_pip(*_: object) -> dict[str, bytes]:
        asked.append("pip")
        return GOOD

    monkeypatch.setattr(headers, "from_wheels", by_pip)
    hashes, sources = headers.SOURCES["tensorrt"]
    with pytest.raises(headers.NoHeaders, match="offline"):
        headers.fetch(tmp_path, hashes, sources)
    assert f"/NVIDIA/TensorRT/{headers.TENSORRT_TAG}/include/" in asked[0]
    assert asked[1:] == ["pip"]
