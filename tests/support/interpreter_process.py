"""Runs a module of interpreter checks in a process of its own: the interpreter is chosen when triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

from tests.support.paths import ROOT


@cache
def check_in_interpreter(module: str, timeout: float = 600) -> frozenset[str]:
    """Run ``python -m module`` with Triton's interpreter, once a session; the names of the kernels that ran.

    AssertionError with its output if a check fails.
    """
    # One thread: the tensors are tiny, and on a busy machine torch's threads spin waiting for each other.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    (kernels,) = (line for line in run.stdout.splitlines() if line.startswith("kernels:"))
    return frozenset(kernels.split()[1:])
