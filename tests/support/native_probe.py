"""The probe as a process to speak with: it makes plugins from plans, leads their lives, and says what it saw."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tests.support.native_build import Native

Shapes = Sequence[Sequence[int]]
TENSORRT_10, TENSORRT_11 = 101401, 110100  # versions that the probe may stand for; 0: no TensorRT


def written(shapes: Shapes) -> str:
    """Input shapes as the probe reads them: "200,256;256"."""
    return ";".join(",".join(map(str, shape)) for shape in shapes)


class Probe:
    """One process. ``log``: what the library logged during the last command."""

    def __init__(self, native: Native, version: int = TENSORRT_10) -> None:
        environment = os.environ | {"LD_LIBRARY_PATH": str(native.driver), "ASAN_OPTIONS": "abort_on_error=1"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [native.probe, native.library, str(version)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self.log: list[str] = []

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self.close()
        if error is None:
            assert status == 0, self._last_words()  # a leak is told at the end

    def close(self) -> int:
        """End the process; its status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait(60)

    def create(self, op: str, data: bytes, field: str = "plan") -> str:
        """Make a plugin of this plan: "made" or "refused"."""
        return self.ask(f"create {op} {field} {len(data)}", data)

    def life(self, shapes: Shapes) -> Any:
        """The plugin's answers for these input shapes."""
        return json.loads(self.ask(f"life {written(shapes)}"))

    def ask(self, line: str, data: bytes = b"") -> str:
        """The answer to a command. Raises AssertionError with what the sanitizers say where the process ends."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line.encode() + b"\n" + data)
        stdin.flush()
        self.log = []
        while (answer := stdout.readline().decode("utf-8", "replace").rstrip("\n")).startswith("log "):
            self.log.append(answer.removeprefix("log "))
        if not answer:
            self._process.wait(60)
            raise AssertionError(f"the probe died of {line!r}: {self._last_words()}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-4000:]
