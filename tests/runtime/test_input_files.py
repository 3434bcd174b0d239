"""Inputs are regular files of bounded size, opened in one place: no pipe is waited for, no device read."""

from __future__ import annotations

import os
import re
import resource
import time
from pathlib import Path

import pytest

from plugins.errors import UserError
from runtime.input_files import open_input, read_input, user_path
from tests.support.paths import ROOT


@pytest.mark.parametrize("kind", ["pipe", "socket-like", "/dev/zero", "/dev/null", "folder"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif not path.exists():
        os.mkfifo(path)
    before, started = set(os.listdir("/proc/self/fd")), time.monotonic()
    for read in (lambda: open_input(path, "a prompt"), lambda: read_input(path, 100, "a prompt")):
        with pytest.raises(UserError, match=r"(?s)cannot be read.*expected: a prompt.*a folder, a pipe or a device"):
            read()
    assert time.monotonic() - started < 1
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_size_is_a_limit_whatever_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_input(tmp_path / "a", 5, "five bytes") == b"12345"
    with pytest.raises(UserError, match=r"(?s)a is too large.*five bytes, of at most 4 B"):
        read_input(tmp_path / "a", 4, "five bytes")
    assert read_input(Path("/proc/self/status"), 1 << 20, "text").startswith(b"Name:")  # its size is said to be 0


def test_a_generous_limit_takes_no_memory_for_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        assert read_input(tmp_path / "a", 1 << 40, "a byte") == b"x"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_home_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert [user_path(text) for text in ("~", "~/x", "a/~")] == [Path(p) for p in ("/h", "/h/x", "a/~")]
    with pytest.raises(UserError, match="~nosuchuser/x names no user's home here"):
        user_path("~nosuchuser/x")


def test_nothing_else_opens_what_users_give() -> None:
    """Files of ours and of the system, and what a build's child and its parent leave for each other, may be read so."""
    allowed = {
        "exporter/bench/generate.py",
        "exporter/bench/measured.py",
        "exporter/builder/child.py",
        "exporter/builder/one_file.py",
        "exporter/builder/parent.py",
        "exporter/doctor/gpu.py",
        "exporter/graphs/stage_graph.py",
        "exporter/selftest/child.py",
        "exporter/selftest/process.py",
        "exporter/sources.py",
        "plugins/configs.py",
        "plugins/cubin.py",
        "plugins/library.py",
        "plugins/native/facts.py",
        "plugins/native/headers.py",
        "plugins/plan_cache.py",
        "runtime/versions.py",
    }
    words = re.compile(
        r"\.read_bytes\(|\.read_text\(|\bopen\([^)]*\"rb?\"|\.open\(\"rb?\"|[^.\w]open\(|Tokenizer\.from_file"
    )
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("exporter", "runtime", "plugins")
        for path in (ROOT / package).rglob("*.py")
        if words.search(path.read_text(encoding="utf-8"))
    }
    assert found <= allowed
