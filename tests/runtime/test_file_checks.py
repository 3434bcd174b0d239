"""Files are hashed once: what was found right is known by its identity, what changed since is hashed again."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugins import user_cache
from plugins.errors import UserError
from runtime import file_checks
from runtime.bundle import Hashing, Manifest, file_info
from runtime.file_checks import FileChecks, Verify, parse_verify
from runtime.hashing import PIECE, HashThreads, tree_of
from runtime.report import Silent
from tests.support.bundle_factory import make_bundle
from tests.support.progress import SilentProgress

NAME = "block.engine"


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A bundle whose files may be remembered at once, and a cache of its own."""
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(file_checks, "_SETTLED_NS", -(10**12))
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are hashed, as they are."""
    names: list[str] = []

    def told(name: str, *args: Any) -> Any:
        names.append(name)
        return Hashing(name, *args)

    monkeypatch.setattr(file_checks, "Hashing", told)
    return names


def check(folder: Path, manifest: Manifest, verify: Verify = "auto", name: str = NAME) -> SilentProgress:
    """One process's check of a file."""
    report = SilentProgress()
    checks = FileChecks(folder, manifest, verify, report)
    try:
        checks.check([name])
    finally:
        checks.close()
    return report


def rewritten(path: Path) -> None:
    """The same bytes in another file of that name."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def touched(path: Path) -> None:
    os.utime(path)


def written_back(path: Path) -> None:
    """Changed and changed back, with the times of before: the change itself has a time that nobody sets."""
    times, data = path.stat(), path.read_bytes()
    path.write_bytes(b"x" * len(data))
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_file_is_hashed_once(tmp_path: Path, manifest: Manifest, hashed: list[str]) -> None:
    folder = tmp_path / "bundle"
    for _ in range(3):
        check(folder, manifest)
    assert hashed == [NAME]
    check(folder, manifest, "always")
    assert hashed == [NAME, NAME]
    check(folder, manifest, "never")
    check(folder, manifest, "never", "head.engine")
    assert hashed == [NAME, NAME]


@pytest.mark.parametrize("change", [rewritten, touched, written_back])
def test_a_file_that_changed_hands_is_hashed_again(
    tmp_path: Path, manifest: Manifest, hashed: list[str], change: Callable[[Path], None]
) -> None:
    check(tmp_path / "bundle", manifest)
    change(tmp_path / "bundle" / NAME)
    check(tmp_path / "bundle", manifest)
    assert hashed == [NAME, NAME]


def test_one_process_hashes_a_file_again_when_it_changes(tmp_path: Path, manifest: Manifest, hashed: list[str]) -> None:
    checks = FileChecks(tmp_path / "bundle", manifest, "always", Silent())
    checks.check([NAME])
    checks.check([NAME])
    assert hashed == [NAME]
    touched(tmp_path / "bundle" / NAME)
    checks.check([NAME])
    assert hashed == [NAME, NAME]
    checks.close()


@pytest.mark.parametrize("tree", [True, False])
def test_other_bytes_are_told_and_never_remembered(tmp_path: Path, manifest: Manifest, tree: bool) -> None:
    """By the hash of pieces, and by that of the whole file in bundles of before."""
    if not tree:
        files = {name: msgspec.structs.replace(info, tree_sha256=None) for name, info in manifest.files.items()}
        manifest = msgspec.structs.replace(manifest, files=files)
    folder, path = tmp_path / "bundle", tmp_path / "bundle" / NAME
    check(folder, manifest)
    path.write_bytes(b"x" * manifest.files[NAME].bytes)
    for _ in range(2):
        with pytest.raises(UserError, match=r"block\.engine: sha256(.|\n)*--verify never"):
            check(folder, manifest)
    check(folder, manifest, "never")
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="is not the file of the manifest"):
        check(folder, manifest, "never")


def test_another_manifest_knows_nothing_of_it(tmp_path: Path, manifest: Manifest, hashed: list[str]) -> None:
    check(tmp_path / "bundle", manifest)
    other = msgspec.structs.replace(manifest.files[NAME], sha256="0" * 64, tree_sha256="0" * 64)
    with pytest.raises(UserError, match="sha256"):
        check(tmp_path / "bundle", msgspec.structs.replace(manifest, files={**manifest.files, NAME: other}))
    assert hashed == [NAME, NAME]


def test_a_file_that_was_written_just_now_is_not_remembered(
    tmp_path: Path, manifest: Manifest, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times may stay the same through another change: clocks of file systems are coarse."""
    monkeypatch.setattr(file_checks, "_SETTLED_NS", 10**12)
    for _ in range(2):
        check(tmp_path / "bundle", manifest)
    assert hashed == [NAME, NAME]


def test_a_file_that_changes_while_it_is_hashed_is_told(tmp_path: Path, manifest: Manifest) -> None:
    checks = FileChecks(tmp_path / "bundle", manifest, "always", Silent())
    checks.begin([NAME])
    for digest in checks._running[NAME].hashing.digests:  # type: ignore[union-attr]
        digest.result()
    touched(tmp_path / "bundle" / NAME)
    with pytest.raises(UserError, match="it was changed while it was read"):
        checks.finish()
    checks.close()


def test_a_change_between_two_looks_is_seen(tmp_path: Path, manifest: Manifest) -> None:
    """What was being hashed of the file before it changed counts for nothing."""
    path = tmp_path / "bundle" / NAME
    checks, data = FileChecks(tmp_path / "bundle", manifest, "always", Silent()), path.read_bytes()
    path.write_bytes(b"x" * len(data))
    checks.begin([NAME])
    path.write_bytes(data)
    checks.check([NAME])
    checks.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("turbotrt-hash")] == []


@pytest.mark.parametrize("how", ["file", "writable by others", "rubbish"])
def test_a_cache_that_cannot_be_used_costs_time_only(
    tmp_path: Path, manifest: Manifest, hashed: list[str], how: str
) -> None:
    cache = tmp_path / "cache"
    if how == "file":
        cache.write_text("in the way")
    report = check(tmp_path / "bundle", manifest)
    assert len([note for note in report.notes if user_cache.VARIABLE in note]) == (how == "file")
    if how == "writable by others":
        (cache / "verified").chmod(0o777)
    elif how == "rubbish":
        for kept in (cache / "verified").iterdir():
            kept.write_bytes(kept.read_bytes()[:-1] + b" ")
    check(tmp_path / "bundle", manifest)
    assert hashed == [NAME, NAME]


def test_the_hash_of_pieces(tmp_path: Path) -> None:
    """As the manifest's documentation states it, at and around the border of a piece."""
    for size in (0, 1, PIECE - 1, PIECE, PIECE + 1):
        data = os.urandom(min(size, 1000)) * (size // 1000 + 1)
        (tmp_path / "x").write_bytes(data[:size])
        pieces = [data[at : min(at + PIECE, size)] for at in range(0, max(1, size), PIECE)]
        want = hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()
        info = file_info(tmp_path / "x")
        assert (info.bytes, info.tree_sha256) == (size, want)
        assert info.sha256 == hashlib.sha256(data[:size]).hexdigest()


def test_hashing_ends_when_it_is_dropped(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b") as file:
        file.truncate(1 << 34)
        threads = HashThreads()
        digests = threads.pieces(file.fileno(), 1 << 34)
        threads.close()
    assert all(digest.done() for digest in digests)
    assert any(digest.cancelled() or digest.exception() for digest in digests)
    assert tree_of([b""]) == hashlib.sha256(b"").hexdigest()


def test_a_way_that_is_not_known_is_told() -> None:
    assert parse_verify("always") == "always"
    with pytest.raises(UserError, match="This way to verify is not known"):
        parse_verify("sometimes")
