"""Cases in child processes: what a child tells is passed on; its crash, its hanging or its early end is a row."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from exporter.builder.parent import module_path
from exporter.selftest.child import Event, Request
from exporter.selftest.rows import Case, Machine, Row, named_op, named_stage
from exporter.selftest.step import Setting
from plugins.temporary import scratch

_START = """import sys
sys.path[:] = {path!r}
from exporter.selftest.child import main
main({parent})
"""
_LAST_WORDS = 30  # lines of TensorRT's, and as many of standard error
_START_UP = 120.0  # seconds for a process's imports, beside its first step
_GRACE = 5.0  # seconds for a process that is to end, before it is killed
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Told:
    """Whom a run of cases tells: a row that is there, a step that begins, the machine."""

    row: Callable[[Row], None]
    step: Callable[[Case, str], None]
    machine: Callable[[Machine], None]


def run_cases(setting: Setting, cases: Sequence[Case], seconds: float, told: Told) -> None:
    """Run cases in one process after the other, until all are through; ``seconds``: the most that a step may take."""
    left = list(cases)
    while left:
        with scratch() as folder, _Child(setting, left, folder) as child:
            left = child.listen(seconds, told)


class _Child:
    """A context: one process at its cases. Whatever ends the block ends it."""

    def __init__(self, setting: Setting, cases: Sequence[Case], folder: Path) -> None:
        self._cases, self._errors = list(cases), folder / "stderr"
        self._at, self._begun, self._failed = 0, "", False
        self._stage: str | None = None
        self._steps: list[str] = []
        self._said: deque[str] = deque(maxlen=_LAST_WORDS)
        self._from = 0  # where in its standard error the present step's begins
        (folder / "request.json").write_bytes(msgspec.json.encode(Request(setting=setting, cases=self._cases)))
        (folder / "start.py").write_text(_START.format(path=module_path(), parent=os.getpid()), encoding="utf-8")
        command = [sys.executable, "-I", str(folder / "start.py"), str(folder / "request.json")]
        with self._errors.open("wb") as stderr:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def listen(self, seconds: float, told: Told) -> list[Case]:
        """Pass on what it tells until it ends; the cases that are left then."""
        hung = False
        for event in self._events(seconds):
            if event is None:
                hung = True
                self._process.send_signal(signal.SIGABRT)
            else:
                self._take(event, told)
        self._end()
        if hung or self._process.returncode or (self._at < len(self._cases) and not self._failed):
            told.row(self._lost(seconds if hung else None))
        if not self._steps:  # nothing of a further case was begun, or it cannot be
            return self._cases[self._at + 1 :]
        case = self._cases[self._at]
        return [msgspec.structs.replace(case, skip=(*case.skip, *self._steps)), *self._cases[self._at + 1 :]]

    def _take(self, event: Event, told: Told) -> None:
        if event.case is not None:
            self._at, self._begun, self._stage, self._failed = event.case, "", None, False
        elif event.step is not None:
            self._begun, self._stage = event.step, event.stage
            self._steps.append(event.step)
            self._said.clear()
            self._from = self._errors.stat().st_size
            told.step(self._cases[self._at], event.step)
        elif event.said is not None:
            self._said.append(event.said)
        elif event.machine is not None:
            told.machine(event.machine)
        elif event.row is not None:
            self._failed = self._failed or event.row.status == "failed"
            told.row(self._completed(event.row) if event.row.status == "failed" else event.row)
        elif event.ended:
            self._at, self._steps, self._begun, self._stage = self._at + 1, [], "", None

    def _completed(self, row: Row) -> Row:
        """A failed row with what was said last, and the op that this names."""
        words = self._words()
        heard = "\n".join(words)
        return msgspec.structs.replace(row, last_words=words, op=row.op or named_op(heard))

    def _lost(self, limit: float | None) -> Row:
        """The row of a step in which the process ended, or which did not end within ``limit`` seconds."""
        status = self._process.returncode
        if limit is not None:
            how = f"did not end within {limit:g} s; the process was killed"
        elif status is None:
            how = "the process does not end, not even when killed"
        elif status < 0:
            how = f"the process was killed by signal {-status} ({signal.Signals(-status).name})"
        else:
            how = f"the process ended with status {status}"
        case, words = self._cases[min(self._at, len(self._cases) - 1)], self._words()
        heard = "\n".join(words)
        return Row(
            part=case.part,
            variant=case.variant,
            host=case.host,
            name=self._begun or ("beginning" if self._at < len(self._cases) else "the process's end"),
            status="failed",
            stage=self._stage or named_stage(heard),
            op=named_op(f"{self._begun}\n{heard}"),
            detail=how,
            last_words=words,
        )

    def _words(self) -> list[str]:
        """TensorRT's last lines of this step, then those of standard error."""
        with self._errors.open("rb") as file:
            file.seek(self._from)
            lines = file.read().decode(errors="replace").splitlines()
        lines = [line for line in lines if line.strip() and not line.startswith("Extension modules: ")]
        return [*self._said, *lines[-_LAST_WORDS:]]

    def _events(self, seconds: float) -> Iterator[Event | None]:
        """What it tells; None, and no more, where nothing came for so many seconds."""
        stream = self._process.stdout
        if stream is None:
            return
        rest, deadline = b"", time.monotonic() + seconds + _START_UP
        while True:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                yield None
                return
            if not (data := os.read(stream.fileno(), _CHUNK)):
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                event = msgspec.json.decode(line, type=Event)
                if event.said is None:  # words are no progress
                    deadline = time.monotonic() + seconds + (0 if event.step else _START_UP)
                yield event

    def _end(self) -> None:
        """Wait for its end, or bring it about: first so that it says where it is (faulthandler), then for good."""
        for number in (signal.SIGABRT, signal.SIGKILL):
            try:
                self._process.wait(_GRACE)
                return
            except subprocess.TimeoutExpired:
                self._process.send_signal(number)

    def _kill(self) -> None:
        """End it at once, if it has not ended."""
        self._process.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        with suppress(subprocess.TimeoutExpired):  # a driver may hold it
            self._process.wait(_GRACE)
