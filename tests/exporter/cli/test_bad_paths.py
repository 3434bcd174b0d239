"""Every command with paths that no system takes: one message and status 2, at once, and before any work."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from exporter.cli.app import app
from plugins.errors import UserError
from runtime.atomic import told, write_atomic
from runtime.input_files import read_input
from runtime.system_errors import system_error
from tests.support.bundle_factory import make_bundle

SECONDS = 20  # in which a command must answer: a pipe has no writer, and /dev/zero no end

BAD = {
    "empty": "",
    "missing": "no/such",
    "below-a-file": "file/x",
    "long": "x" * 256,
    "longer": "x" * 5000,
    "loop": "loop",
    "below-a-loop": "loop/x",
    "pipe": "pipe",
    "zeros": "/dev/zero",
    "null": "/dev/null",
    "folder": "folder",
    "memory": "/proc/self/mem",
    "no-file-system": "/proc/x",
    "read-only": "/sys/x",
    "nobody": "~nosuchuser/x",
    "no-text": os.fsdecode(b"\xff\xfe"),
    "surrogate": "\ud800",
    "digits": "9" * 400,
    "root": "/",
}
CHECKED = ["--model", "wan-tiny", "--gpu", "rtx5090", "--components", "dit,text,vae"]
READ: dict[str, Callable[[str], list[str]]] = {
    "inspect": lambda bad: ["inspect", bad],
    "plan": lambda bad: ["plan", "--bundle", bad],
    "bench": lambda bad: ["bench", "--bundle", bad],
    "compare": lambda bad: ["compare", "--bundle", bad, "--out", "report"],
    "generate": lambda bad: ["generate", "--bundle", bad, "--prompt", "x", "--out", "o.mp4"],
    "prompts": lambda bad: ["generate", "--bundle", "bundle", "--prompts", bad, "--out", "o.safetensors"],
    "embeds": lambda bad: ["generate", "--bundle", "bundle", "--embeds", bad, "--out", "o.safetensors"],
    "pack": lambda bad: ["pack", "--checkpoint", bad, "--model", "wan-tiny", "--out", "o.safetensors"],
    "merge": lambda bad: ["merge", "--base", bad, "--sla", bad, "--rcm", bad, "--out", "o.safetensors"],
}
WRITTEN: dict[str, Callable[[str], list[str]]] = {
    "pack": lambda bad: ["pack", "--checkpoint", "file", "--model", "wan-tiny", "--out", f"{bad}/o.safetensors"],
    "merge": lambda bad: [
        *["merge", "--base", "file", "--sla", "file", "--rcm", "file", "--out"],
        f"{bad}/o.safetensors",
    ],
    "bench media": lambda bad: ["bench", "media", "--model", "wan-tiny", "--out", f"{bad}/o.json"],
    "video": lambda bad: [*["generate", "--bundle", "bundle", "--embeds", "file", "--out"], f"{bad}/o.mp4"],
    "latents": lambda bad: [*["generate", "--bundle", "bundle", "--embeds", "file", "--out"], f"{bad}/o.safetensors"],
    "selftest": lambda bad: ["selftest", "--quick", "--json", f"{bad}/o.json"],
    "selftest --keep": lambda bad: ["selftest", "--quick", "--keep", f"{bad}/o"],
    "png": lambda bad: [*["generate", "--bundle", "bundle", "--embeds", "file", "--out"], f"{bad}/o"],
}
UNWRITABLE = [name for name in BAD if name not in ("empty", "missing", "folder", "no-text", "root")]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    make_bundle(tmp_path / "bundle")

    def hang(*_: object) -> None:
        raise BaseException("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def check(arguments: list[str]) -> str:
    """The message of a command that must be refused."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, f"{arguments}: {result.exception!r}\n{result.output}"
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n  remedy:") <= 1
    return result.stderr


@pytest.mark.parametrize("command", READ)
def test_what_cannot_be_read_is_one_message(command: str) -> None:
    before = {path.name for path in Path().iterdir()}
    for bad in BAD.values():
        check(READ[command](bad))
    assert {path.name for path in Path().iterdir()} == before


@pytest.mark.parametrize("command", WRITTEN)
def test_what_cannot_be_written_is_one_message(command: str) -> None:
    before = sorted(str(path) for path in Path().rglob("*"))
    for name in UNWRITABLE:
        check(WRITTEN[command](BAD[name]))
    assert sorted(str(path) for path in Path().rglob("*")) == before


@pytest.mark.parametrize("option", ["--out", "--checkpoint", "--text-encoder", "--tokenizer", "--vae"])
def test_an_export_is_told_before_its_work(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        raise UserError("The work has begun.")

    monkeypatch.setattr("exporter.export.stage_graph", work)
    for name, bad in BAD.items():
        text = check(["export", *CHECKED, option, bad])
        if option == "--out":
            assert ("The work has begun." in text) == (name not in UNWRITABLE), text
        assert "embed.onnx" not in text


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("taken.mp4", "Is a directory"),
        ("taken.safetensors", "Is a directory"),
        ("pipe.mp4", "it is a pipe or a device"),
        ("full", "exists already"),
        ("x" * 252 + ".mp4", "File name too long"),
        ("x" * 256, "File name too long"),
    ],
)
def test_a_generation_is_not_lost_at_its_end(out: str, words: str) -> None:
    for name in ("taken.mp4", "taken.safetensors", "full/0"):
        Path(name).mkdir(parents=True)
    os.mkfifo("pipe.mp4")
    save_file({"text_embeds": np.zeros((4, 4096), np.float32)}, "e.safetensors")
    assert words in check(["generate", "--bundle", "bundle", "--embeds", "e.safetensors", "--out", out])


def test_names_of_255_bytes_are_written(tmp_path: Path) -> None:
    name = "x" * 243 + ".safetensors"
    write_atomic(tmp_path / name, b"whole")
    assert (tmp_path / name).read_bytes() == b"whole"


def test_a_home_that_the_shell_left_alone_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"{tmp_path}/home/x is not a bundle" in check(["inspect", "~/x"])
    assert f"{tmp_path}/home/x is not a bundle" in check(["bench", "--bundle=~/x"])
    assert not Path("~").exists()


def test_numbers_of_four_hundred_digits(tmp_path: Path) -> None:
    save_file({"text_embeds": np.zeros((4, 4096), np.float32)}, "e.safetensors")
    given = ["generate", "--bundle", "bundle", "--embeds", "e.safetensors", "--out", "o.safetensors"]
    for digits in ("9" * 400, "9" * 5000):
        for option in ("--steps", "--frames", "--vram", "--sigma-max"):
            check([*given, option, digits])
        check([*given, "--size", f"{digits}x480"])
        check(["plan", "--bundle", "bundle", "--vram", digits + "GB"])
        check(["export", *CHECKED, "--topk", digits])


def test_a_file_that_grows_over_its_limit(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"(?s)File too large.*ulimit -f"), told(tmp_path / "a"):
            write_atomic(tmp_path / "a", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="is too large"):
        read_input(Path("file"), 0, "nothing")


OS_ERRORS = [
    (errno.EACCES, "permissions"),
    (errno.ELOOP, "circle of links"),
    (errno.EMFILE, "ulimit -n"),
    (errno.EROFS, "choose a folder"),
    (errno.ENAMETOOLONG, "a shorter name"),
    (errno.EIO, "check what is there"),
]


@pytest.mark.parametrize(("number", "words"), OS_ERRORS)
def test_an_error_of_the_system_names_its_path_and_a_remedy(number: int, words: str) -> None:
    error: Any = system_error(OSError(number, os.strerror(number), "/a/b"))
    lines = str(error).splitlines()
    assert lines[0].startswith("/a/b cannot be ")
    assert words in lines[-1]
    assert os.strerror(number) in str(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 9 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_want_of_memory_is_one_message(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("exporter.cli.inspection.load_manifest", fail)
    assert "The GPU or the host has not that much memory free." in check(["inspect", "bundle"])


def test_what_is_no_systems_error_stays_a_mistake_of_ours() -> None:
    assert system_error(RuntimeError("a bug")) is None
    assert system_error(ValueError("a bug")) is None
    assert system_error(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


def test_too_many_threads_are_told() -> None:
    assert "ulimit -u" in str(system_error(RuntimeError("can't start new thread")))
