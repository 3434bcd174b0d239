"""A target: a reader, what makes its inputs, and what it may answer. All else is a failure that can be run again."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError

SECONDS = 20  # of one case; the machine may be busy
MEMORY = 1 << 20  # KiB more than before it

Case = Callable[[random.Random, Path], None]


@dataclass(frozen=True)
class Target:
    """``make``: given an empty folder, what prepares the inputs and gives the case, run thousands of times.

    ``cases``: how many take some seconds; ``refusals``: what a reader may raise.
    """

    name: str
    make: Callable[[Path], Case]
    cases: int
    refusals: tuple[type[Exception], ...] = (UserError,)


class Failure(AssertionError):
    """A case that ended otherwise than it may; the message has what runs it again."""


@dataclass
class Tally:
    """How cases ended."""

    accepted: int = 0
    refused: int = 0


class Fuzzer:
    """One target in a folder of its own, which holds the inputs of the case at hand."""

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        self._target, self._folder, self._seed = target, folder, seed
        (folder / "made").mkdir(parents=True, exist_ok=True)
        self._case = target.make(folder / "made")
        self.tally = Tally()

    def run(self, number: int) -> None:
        """One case, by its number. Raises Failure where it crashes, hangs or takes memory; its files then stay."""
        target, here = self._target, self._folder / "case"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        before = _peak_from_now()
        try:
            with _limited(SECONDS):
                self._case(random.Random(f"{target.name} {self._seed} {number}"), here)
        except target.refusals:
            self.tally.refused += 1
        except BaseException as error:  # a panic of Rust's is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            raise self._failure(number, f"{type(error).__name__}: {error}") from error
        else:
            self.tally.accepted += 1
        if (grown := _peak() - before) > MEMORY:
            raise self._failure(number, f"{grown >> 10:,} MiB of memory")

    def _failure(self, number: int, what: str) -> Failure:
        again = f"python -m tests.fuzz --target {self._target.name} --seed {self._seed} --case {number}"
        return Failure(f"{what[:500]}\n  again: {again}\n  files: {self._folder / 'case'}")


def _peak_from_now() -> int:
    """KiB of memory that this process has; the peak is counted anew from here, where the kernel lets it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """KiB of memory that this process had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class Hang(BaseException):
    """A case took too long. No Exception: the readers catch those."""


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
