"""A process in which Triton interprets kernels, and runs cases as it is asked to.

Triton chooses when it is imported, so the tests' own process, which compiles, cannot.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import traceback
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

from tests.support.interpret import RAN, Case
from tests.support.paths import ROOT
from tests.support.shared import Shared


class Interpreter:
    """Runs each case of a session once; the process is started for the first and stays for those that follow."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._process: subprocess.Popen[str] | None = None

    def run(self, case: Case) -> frozenset[str]:
        """Names of the kernels that the case ran. Raises AssertionError with what the case printed, where it fails."""
        folder = self._shared.once(f"interpreted {case.module} {case.name}", lambda made: self._run(case, made))
        found = json.loads((folder / "result.json").read_text())
        print(found["output"])
        assert found["error"] is None, found["output"] + found["error"]
        return frozenset(found["kernels"])

    def _run(self, case: Case, made: Path) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.interpreter_process"],
                cwd=ROOT,
                env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([case.module, case.name]) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, f"the interpreter's process ended with {self._process.wait()}"
        (made / "result.json").write_text(reply)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


def _reply(module: str, name: str) -> str:
    (case,) = (case for case in import_module(module).cases() if case.name == name)
    output, error = io.StringIO(), None
    RAN.clear()
    with redirect_stdout(output):
        try:
            case.run()
        except Exception:
            error = traceback.format_exc()
    return json.dumps({"kernels": sorted(RAN), "output": output.getvalue(), "error": error})


def serve() -> None:
    """Answer each line [module, case] of standard input with a line."""
    for name in ("numbers", "speed"):
        import_module(f"tests.support.interpreter_{name}")
    for line in sys.stdin:
        print(_reply(*json.loads(line)), flush=True)


if __name__ == "__main__":
    serve()
