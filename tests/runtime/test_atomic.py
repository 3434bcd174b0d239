"""Files are replaced whole: what fails, however it fails, leaves the old one and nothing beside it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.errors import UserError
from plugins.temporary import is_temporary
from runtime import atomic
from runtime.atomic import atomic_file, atomic_folder, atomic_path, put_in_place, told, write_atomic
from runtime.media.files.png_folder import PngFolder
from runtime.tensor_files import write_tensors


@contextmanager
def mask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def test_content_appears_whole_under_a_short_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with atomic_file(path) as file:
        file.write(b"new")
        (beside,) = tmp_path.iterdir()
        assert len(beside.name) < 60 + len(os.uname().nodename)
        assert f"-{os.getpid()}-" in beside.name
        assert is_temporary(beside.name)
    assert path.read_bytes() == b"new"
    write_atomic(path, b"newer")
    with atomic_path(path) as temporary:
        assert path.read_bytes() == b"newer"
        temporary.write_bytes(b"newest")
    assert path.read_bytes() == b"newest"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("value", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o000, 0o644)])
def test_anyone_may_read_what_the_umask_lets(value: int, mode: int, tmp_path: Path) -> None:
    with mask(value):
        write_atomic(tmp_path / "a", b"")
        write_tensors(tmp_path / "b", {"x": np.zeros(1)}, {})
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [mode, mode]


WRITERS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "path": atomic_path,
    "file": atomic_file,
    "folder": atomic_folder,
}


@pytest.mark.parametrize(
    "error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1), OSError(errno.ENOSPC, "full")]
)
@pytest.mark.parametrize("kind", WRITERS)
def test_whatever_is_raised_leaves_all_as_it_was(kind: str, error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "a"
    if kind != "folder":
        target.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(type(error)) as caught, WRITERS[kind](target):
        raise error
    assert caught.value is error
    assert sorted(tmp_path.iterdir()) == before
    assert kind == "folder" or target.read_bytes() == b"old"


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", WRITERS)
def test_what_fails_at_the_end_leaves_all_as_it_was(
    kind: str, error: BaseException, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(type(error)) as caught, WRITERS[kind](tmp_path / "a"):
        pass
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_not_hidden_by_what_cannot_be_removed(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.unlink()
            temporary.mkdir()
            raise ValueError("the news")

    with pytest.raises(ValueError, match="the news"):
        write()


def test_file_and_folder_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replacing(source: Any, target: Any) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    write_atomic(tmp_path / "a", b"x")
    assert done == ["file", "replace", "folder"]
    done.clear()
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "1").touch()
        (folder / "2").touch()
    assert done == ["file", "file", "folder", "replace", "folder"]
    (tmp_path / "c").mkdir()
    put_in_place(tmp_path / "a", tmp_path / "c" / "a")
    assert (tmp_path / "c" / "a").read_bytes() == b"x"


def test_file_systems_that_cannot_sync_a_folder_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("path", "got"),
    [
        ("no/a", "no folder "),
        ("file/a", "Not a directory"),
        ("folder", "Is a directory"),
        ("x" * 256, "File name too long"),
        ("/proc/a", "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_told(path: str, got: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as caught:
        write_tensors(tmp_path / path, {"x": np.zeros(1)}, {})
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / path} cannot be written."
    assert [line.split()[0] for line in lines[1:]] == ["expected:", "got:", "remedy:"]
    assert got in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_has_its_own_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="free some space"), told(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_writer_tells_its_own_errors_only(tmp_path: Path) -> None:
    """What the caller raises inside stays what it is; two writers of one folder do not mix."""
    frames = np.zeros((1, 16, 16, 3), np.uint8)

    def interrupted() -> None:
        with PngFolder(tmp_path / "a") as sink:
            sink.write(frames)
            raise OSError("elsewhere")

    with pytest.raises(OSError, match="elsewhere"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_the_second_into_a_folder_is_told_before_its_work(tmp_path: Path) -> None:
    """Three generations into one folder: two were lost at their ends."""
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    first = PngFolder(tmp_path / "a")
    first.check()
    with pytest.raises(UserError, match="a is taken"):
        PngFolder(tmp_path / "a").check()
    with first:
        first.write(frames)
        with pytest.raises(UserError, match="a is taken"):
            PngFolder(tmp_path / "a").check()
    with pytest.raises(UserError, match="a exists already"):
        PngFolder(tmp_path / "a").check()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "00000.png"]
    PngFolder(tmp_path / "b").check()
    assert not (tmp_path / "b").exists(), "what was claimed for nothing stays behind"


def test_nothing_else_renames_or_makes_temporary_files() -> None:
    """Every file that replaces another goes through runtime.atomic; whole folders through exporter.bundle.swap."""
    root = Path(atomic.__file__).parent.parent
    allowed = {"runtime/atomic.py", "exporter/bundle/swap.py", "exporter/builder/stage_engine.py"}
    words = ("mkstemp", "os.replace", ".rename(", "os.rename", "fsync")
    found = {
        str(path.relative_to(root))
        for part in ("exporter", "runtime", "plugins")
        for path in (root / part).rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in words)
    }
    assert found == allowed
