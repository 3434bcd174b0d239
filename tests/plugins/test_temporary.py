"""What killed processes leave behind goes with the next one, and what is at work stays, whoever's it is."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.interrupts import uninterrupted
from plugins.temporary import is_temporary, sweep, temporary
from runtime.atomic import atomic_file, atomic_folder
from tests.support.killed import forked


def half_written(folder: Path) -> Callable[[Callable[[], None]], None]:
    """A process that has begun a file and a folder."""

    def work(pause: Callable[[], None]) -> None:
        with atomic_file(folder / "a.safetensors") as file, atomic_folder(folder / "frames") as frames:
            file.write(b"half")
            (frames / "00000.png").write_bytes(b"half")
            pause()

    return work


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    with forked(half_written(tmp_path)) as child:
        begun = sorted(path.name for path in tmp_path.iterdir())
        assert len(begun) == 2
        assert all(is_temporary(name) and f"-{child}-" in name for name in begun)
        with atomic_file(tmp_path / "b") as file:
            file.write(b"whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*begun, "b"]), "a living process's files"
    with atomic_file(tmp_path / "b"):
        left = [path.name for path in tmp_path.iterdir() if path.name in begun]
    assert left == []
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(("age", "stays"), [(60, True), (2 * 86_400, False)])
def test_another_hosts_files_stay_while_they_may_be_written(age: int, stays: bool, tmp_path: Path) -> None:
    """Its locks may not be seen here, on a network's disk."""
    path = tmp_path / ".turbotrt-another.host-12-0123456789ab.partial"
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age,) * 2)
    sweep(tmp_path)
    assert path.exists() == stays


def test_other_hidden_files_are_nobodys_to_remove(tmp_path: Path) -> None:
    names = [".turbotrt-x.partial", ".turbotrt.lock", "turbotrt-vm-1-0123456789ab.partial", ".hidden"]
    for name in names:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_block_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    block = temporary(tmp_path, directory=True)
    (block.__enter__() / "x").touch()
    del block
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_waits_for_the_end_of_what_must_be_whole() -> None:
    done = []

    def clean_up() -> None:
        with uninterrupted():
            os.kill(os.getpid(), 2)
            done.append("all of it")
        done.append("not this")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    assert done == ["all of it"]


def test_a_forked_child_ends_nothing_of_its_parents(tmp_path: Path) -> None:
    """It inherits what is to be done at the end, and its own end is no end of that."""
    with temporary(tmp_path) as path:
        if (child := os.fork()) == 0:
            try:
                gc.collect()
                weakref.finalize._exitfunc()  # type: ignore[attr-defined]  # what the end of a process runs
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert path.exists()
    assert list(tmp_path.iterdir()) == []
