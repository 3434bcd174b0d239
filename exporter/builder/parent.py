"""Builds one engine in a child process, shows its progress, and turns its death into an error with the log's end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from exporter.builder.child import BuildRequest, BuildResult
from exporter.builder.flavour import library_folder
from exporter.gpus import gpu_named
from plugins.errors import UserError
from plugins.temporary import scratch
from runtime.report import Update

_ROOT = Path(__file__).resolve().parents[2]
_START = """import sys
sys.path[:] = {path!r}
from exporter.builder.child import main
main({parent})
"""
_LOG_LINES = 15


def build_engine(request: BuildRequest, update: Update) -> BuildResult:
    """Run the builder; ``request.engine`` is written only when it succeeds. Raises UserError with the log's end."""
    with scratch() as folder:
        # Not by msgspec: a path may hold bytes that are no text.
        (folder / "request.json").write_text(json.dumps(msgspec.to_builtins(request)), encoding="ascii")
        (folder / "start.py").write_text(_START.format(path=module_path(), parent=os.getpid()), encoding="utf-8")
        command = [sys.executable, "-I", str(folder / "start.py"), str(folder / "request.json")]
        errors = folder / "stderr"
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, env=_environment(request, folder), text=True
            )
            try:
                answer = _listen(child, update)
            except BaseException:
                child.kill()
                raise
            finally:
                child.wait()
        if "result" in answer:
            return msgspec.convert(answer["result"], BuildResult)
        raise _failure(request, child.returncode, answer.get("error"), errors.read_text(errors="replace"))


def module_path() -> list[str]:
    """Where a child finds modules: where this process does, less the folder that it happens to be in.

    That one counts only where PYTHONPATH names it. The child is started isolated (-I): of itself it looks neither there
    nor in PYTHONPATH.
    """
    named = {os.path.realpath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    found = [entry for entry in sys.path if entry and (os.path.realpath(entry) in named or not _is_current(entry))]
    return found if str(_ROOT) in found else [*found, str(_ROOT)]


def _is_current(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:  # one of the two is no more
        return False


def _environment(request: BuildRequest, folder: Path) -> dict[str, str]:
    """The child's environment: RTX's parser opens libtensorrt_rtx.so by that name, and its wheel has only .so.1."""
    environment = dict(os.environ)
    if libraries := library_folder(gpu_named(request.gpu).flavour):
        (folder / "libtensorrt_rtx.so").symlink_to(libraries / "libtensorrt_rtx.so.1")
        paths = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)  # an empty one is the current folder
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(folder), *filter(None, paths)])
    return environment


def _listen(child: subprocess.Popen[str], update: Update) -> dict[str, object]:
    answer: dict[str, object] = {}
    for line in child.stdout or ():
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a library printed to stdout
        if "progress" in message:
            update(*message["progress"])
        else:
            answer |= message
    return answer


def _failure(request: BuildRequest, status: int, error: object, stderr: str) -> UserError:
    log = Path(request.log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    tail = "\n".join([*lines[-_LOG_LINES:], *stderr.splitlines()[-_LOG_LINES:]])
    how = f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"
    return UserError(
        f"Building {Path(request.engine).name} failed: the builder {how}.",
        got=str(error or "no reason given"),
        remedy=f"read the log, whose end is below (whole: {log})\n{tail}",
    )
