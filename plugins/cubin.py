"""Machine code of a kernel from its PTX, and what the tools that come with Triton print of it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from plugins.temporary import scratch
from plugins.triton_cache import writable_cache


class _Backend(Protocol):
    """What is called of Triton's compiler for an NVIDIA GPU."""

    def parse_options(self, options: dict[str, Any]) -> Any: ...
    def make_cubin(self, ptx: str, metadata: dict[str, Any], options: Any, sm: int) -> bytes: ...


class Cubin(NamedTuple):
    """``stack``: bytes a thread of spills and local arrays."""

    code: bytes
    registers: int
    stack: int


def assembled(ptx: str, sm: int) -> Cubin:
    """PTX of this or an earlier SM as a cubin for ``sm``, by Triton's own call of ptxas; kept in Triton's cache.

    Raises triton.runtime.errors.PTXASError with ptxas's words.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import get_cache_manager

    writable_cache()
    backend = make_backend(GPUTarget("cuda", sm, 32))
    kept = get_cache_manager(hashlib.sha256(f"{backend.hash()}\n{ptx}".encode()).hexdigest())
    if (code := kept.get_file("kernel.cubin")) is not None:  # written last
        usage = json.loads(Path(kept.get_file("usage.json")).read_text())
        return Cubin(Path(code).read_bytes(), *usage)
    made = _assembled(backend, ptx, sm)
    kept.put(json.dumps(made[1:]), "usage.json", binary=False)
    kept.put(made.code, "kernel.cubin")
    return made


def _assembled(backend: _Backend, ptx: str, sm: int) -> Cubin:
    import triton

    with triton.knobs.compilation.scope():
        # Without this the cubin holds the folder the sources lie in, and two checkouts give two engines.
        triton.knobs.compilation.disable_line_info = True
        code = backend.make_cubin(ptx, {}, backend.parse_options({}), sm)
    return Cubin(code, *resource_usage(code))


def binary_tool(name: str) -> Path:
    """ptxas, cuobjdump or nvdisasm as the triton wheel carries it."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def inspected(cubin: bytes, tool: str, option: str) -> str:
    """What one of those tools prints of a cubin."""
    with scratch() as folder:
        file = folder / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(binary_tool(tool)), option, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and stack bytes a thread (spills and local arrays) of the one kernel in a cubin."""
    text = inspected(cubin, "cuobjdump", "--dump-resource-usage")
    match = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if match is None:
        raise ValueError(f"cuobjdump printed no resource usage:\n{text}")
    return int(match[1]), int(match[2])
