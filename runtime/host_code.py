"""Native code inside engines: how it is seen, and when it may run.

``export --embed-plugins`` puts the plugin library into an engine, and whoever loads the engine runs it. TensorRT for
RTX 1.7.1 does so before it asks whether host code is allowed, so that its flag protects nobody: what an engine holds
is read off its bytes, before TensorRT has them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from pathlib import Path

from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.input_files import open_input

_ELF = b"\x7fELF"
_HEADER = 20  # bytes of an ELF header up to the end of e_machine
_SHARED, _CUDA = 3, 190  # e_type of a shared library, e_machine of a GPU's


def holds_host_code(data: bytes | mmap) -> bool:
    """Whether a shared library for a CPU lies anywhere in these bytes; a plan's kernels are ELF files too, for a GPU.

    What is asked of the header is what glibc asks before it loads a file.
    """
    at = data.find(_ELF)
    while at >= 0:
        header = data[at : at + _HEADER]
        order = {1: "little", 2: "big"}.get(header[5]) if len(header) == _HEADER else None
        if order is not None and header[4] in (1, 2) and header[6] == 1:
            kind, machine = (int.from_bytes(header[i : i + 2], order) for i in (16, 18))  # type: ignore[arg-type]
            if kind == _SHARED and machine != _CUDA:
                return True
        at = data.find(_ELF, at + 1)
    return False


def carries_host_code(path: Path) -> bool:
    """The same of a file, of any size. Raises UserError where it cannot be read."""
    with os.fdopen(open_input(path, "an engine"), "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return holds_host_code(data)


def check_host_code(name: str, data: bytes, manifest: Manifest) -> bool:
    """Whether this engine carries native code, which may then run. Raises UserError where it may not.

    It may if the manifest says so, and the file's hash, taken here of the very bytes that will be loaded, is its.
    """
    if not holds_host_code(data):
        return False
    if manifest.embedded_library is None:
        raise UserError(
            f"{name} carries native code, and its manifest says nothing of it.",
            expected="kernels for the GPU alone, or a bundle that export --embed-plugins made",
            got="a shared library, which would run in this process",
            remedy="do not use this bundle; export one yourself",
        )
    digest, wanted = hashlib.sha256(data).hexdigest(), manifest.files[name].sha256
    if digest != wanted:
        raise UserError(
            f"{name} carries native code, and is not the file of the manifest: it is not loaded.",
            expected=f"sha256 {wanted[:12]}…",
            got=f"sha256 {digest[:12]}…",
            remedy="do not use this bundle; export one yourself",
        )
    return True


def unverified_host_code(manifest: Manifest, names: Iterable[str], *, verify: bool) -> UserError | None:
    """The reason against loading these files where nothing is verified, or None."""
    engines = {stage.engine for stage in manifest.stages}
    if verify or manifest.embedded_library is None or engines.isdisjoint(names):
        return None
    return UserError(
        "The engines carry their plugins as native code, which never runs unverified.",
        expected="a comparison with the manifest's sha256",
        got="--verify never",
        remedy="drop --verify never, or export without --embed-plugins",
    )
