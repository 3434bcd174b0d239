"""The child process: ``main`` runs cases step by step and tells its parent of each by lines of JSON.

In a process of their own, because what is under test may crash, hang or break a CUDA context for good. Where
the GPU no longer answers the process ends itself, and the parent starts another for what is left.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from exporter.builder.child import die_with
from exporter.compare.spec import within
from exporter.selftest.rows import Case, Machine, Part, Row, named_op, named_stage
from exporter.selftest.step import Finding, Setting, Step, Steps
from plugins.errors import UserError
from runtime.backends.cuda_device import CudaDevice
from runtime.backends.loader import LOGGER

#: Where each part's steps are made.
_PARTS: Mapping[Part, str] = MappingProxyType(
    {
        "machine": "machine.steps",
        "export": "exports.steps",
        "ops": "ops.steps",
        "stages": "stages.steps",
        "generate": "generations.steps",
        "cold": "generations.cold",
        "warm": "generations.warm",
        "times": "times.steps",
    }
)
_WITHOUT_GPU: tuple[Part, ...] = ("machine", "export")
_TRACE = 6  # last lines of a traceback


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to do."""

    setting: Setting
    cases: list[Case]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a child says: a case's index, a step that begins, a row, the machine, a line of TensorRT's, a case's end."""

    case: int | None = None
    step: str | None = None
    stage: str | None = None
    row: Row | None = None
    machine: Machine | None = None
    said: str | None = None
    ended: bool = False


class _Parent:
    """The way to the parent: what was standard output, which stray prints no longer reach."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)

    def tell(self, event: Event) -> None:
        line = msgspec.json.encode(event) + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]


class _Said(logging.Handler):
    """Passes on what TensorRT logs."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self._parent.tell(Event(said=record.getMessage()))


def main(parent: int) -> None:
    """Run what ``sys.argv[1]`` requests, for the process ``parent``."""
    die_with(parent)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Request)
    told = _Parent()
    LOGGER.addHandler(_Said(told))
    for index, case in enumerate(request.cases):
        told.tell(Event(case=index))
        if not _run_case(request.setting, case, told):
            return
        told.tell(Event(ended=True))


def _steps(part: Part) -> Steps:
    module, _, name = _PARTS[part].partition(".")
    found: Steps = getattr(importlib.import_module(f"exporter.selftest.{module}"), name)
    return found


def _run_case(setting: Setting, case: Case, told: _Parent) -> bool:
    """Whether the next step may be run here: all came to their end, or to an error that left the GPU as it was."""
    from exporter.selftest.hosts import register_host

    try:
        register_host(setting, case)
        for step in _steps(case.part)(setting, case):
            if step.name in case.skip:
                continue
            told.tell(Event(step=step.name, stage=step.stage))
            try:
                _run_step(case, step, told)
            except Exception as error:
                told.tell(Event(row=_failure(case, step, error)))
                if case.part not in _WITHOUT_GPU and not _answers():
                    return False
    except Exception as error:
        told.tell(Event(row=_failure(case, None, error)))
    return True


def _answers() -> bool:
    """Whether the GPU still does what it is told in this process: some errors end a CUDA context for good."""
    try:
        device = CudaDevice()
        with device.current():
            device.allocate(1).free()
            device.finish()
        device.close()
    except Exception:  # of whatever kind: another process is tried
        return False
    return True


def _run_step(case: Case, step: Step, told: _Parent) -> None:
    began = time.monotonic()
    for found in step.run():
        if found.machine is not None:
            told.tell(Event(machine=found.machine))
        told.tell(Event(row=_row(case, found, time.monotonic() - began)))
        began = time.monotonic()


def _row(case: Case, found: Finding, seconds: float) -> Row:
    passed = found.error is None or within(found.error, found.bound, higher=False)
    return Row(
        part=case.part,
        variant=case.variant,
        host=case.host,
        name=found.name,
        status="skipped" if found.skipped else "passed" if passed else "failed",
        stage=found.stage,
        op=found.op,
        tensor=found.tensor,
        error=found.error,
        bound=found.bound,
        seconds=seconds,
        figures=dict(found.figures),
        detail=found.detail,
    )


def _failure(case: Case, step: Step | None, error: Exception) -> Row:
    """The row of a step that ended by an exception; ours by its message alone, another with where it came from."""
    text = str(error) or type(error).__name__
    if not isinstance(error, UserError):
        trace = traceback.format_exc().strip().splitlines()
        text = "\n".join([f"{type(error).__name__}: {text}", *trace[-_TRACE:]])
    stage: Any = getattr(error, "stage", None)  # NonFiniteError's
    return Row(
        part=case.part,
        variant=case.variant,
        host=case.host,
        name="beginning" if step is None else step.name,
        status="failed",
        stage=(step.stage if step is not None else None) or stage or named_stage(text),
        op=named_op(text),
        detail=text,
    )
