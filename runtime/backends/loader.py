"""Engines from their files: plugins registered before, or brought along where that is allowed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plugins.library import register
from plugins.registry import OPS
from runtime.backends.protocol import BackendError
from runtime.bundle import Manifest
from runtime.host_code import check_host_code
from runtime.input_files import read_input

#: Where a program may listen to what TensorRT warns of; without a handler nothing is printed.
LOGGER = logging.getLogger("turbotrt.tensorrt")
LOGGER.addHandler(logging.NullHandler())

_LOG_LINES = 15
_MAX_ENGINE = 1 << 38  # bytes; a one-file engine holds all weights


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps its last lines, warnings and worse, for the errors that follow them."""

    class TailLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=_LOG_LINES)

        def log(self, severity: Any, message: str) -> None:
            if severity not in (trt.ILogger.VERBOSE, trt.ILogger.INFO):
                self.lines.append(f"[{severity.name}] {message}")
                LOGGER.log(logging.WARNING if severity == trt.ILogger.WARNING else logging.ERROR, self.lines[-1])

        def error(self, problem: str) -> BackendError:
            """The problem with TensorRT's own last words."""
            said = "\n    ".join(self.lines) or "nothing"
            return BackendError(problem, got=f"TensorRT's log ends:\n    {said}")

    return TailLogger()


class EngineLoader:
    """Deserializes a bundle's engines, with one plugin host for all of them."""

    def __init__(self, trt: Any, log: Any, manifest: Manifest, note: Callable[[str], None]) -> None:
        """``note`` hears of native code that is about to run."""
        self._trt, self._log, self._manifest, self._note = trt, log, manifest, note
        if manifest.embedded_library is None:
            register(trt, OPS)
        self._runtime = trt.Runtime(log)
        self._carriers: list[Any] = []  # the registries of engines that bring their plugins live in their runtimes

    def load(self, path: Path) -> Any:
        """The engine in this file. Raises BackendError with the log's end, UserError for code that may not run.

        An engine that brings its plugins gets a runtime of its own: a registry takes no library twice.
        """
        data, runtime = read_input(path, _MAX_ENGINE, "an engine"), self._runtime
        if check_host_code(path.name, data, self._manifest):
            self._note(f"{path.name} brings its plugins: native code of this bundle runs in this process.")
            runtime = self._trt.Runtime(self._log)
            runtime.engine_host_code_allowed = True
            self._carriers.append(runtime)
        if (engine := runtime.deserialize_cuda_engine(data)) is None:
            raise self._log.error(f"{path.name} could not be loaded.")
        return engine
