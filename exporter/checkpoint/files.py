"""Which files a path means, and which reader takes them: told by what they hold, whatever they are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

from exporter.checkpoint.foreign import foreign_error
from exporter.checkpoint.safetensors_file import INDEX_SUFFIX, SafetensorsFile, ShardedSafetensors
from exporter.checkpoint.source import TensorSource
from exporter.checkpoint.torch_file import TorchFile
from plugins.errors import UserError
from runtime.input_files import open_input
from runtime.safetensors_header import MAX_HEADER_BYTES

TORCH_SUFFIXES = (".pth", ".pt")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,9})-of-(?P<count>\d{1,9})\.safetensors")
_SUPPORTED = "a .safetensors or .pth file, a *.safetensors.index.json, or a folder holding one of them"


def weight_files(folder: Path) -> list[Path]:
    """The checkpoints directly in a folder: indices, else safetensors files, else .pth files (Wan's T5 and VAE).

    Shards without an index are one checkpoint, which the first of them stands for.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for suffixes in ((INDEX_SUFFIX,), (".safetensors",), TORCH_SUFFIXES):
        if found := [path for path in files if path.name.endswith(suffixes)]:
            firsts: dict[object, Path] = {}
            for path in found:
                firsts.setdefault(_set_of(path) or path, path)
            return list(firsts.values())
    return []


def find_weights(path: Path) -> Path:
    """The one checkpoint that a path means. Raises UserError if there is none, or more than one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"There is no checkpoint at {path}.", expected=_SUPPORTED, got="no such file or folder")
    found = weight_files(path)
    if not found and (path / "transformer").is_dir():  # a diffusers pipeline
        found = weight_files(path / "transformer")
    if not found and (others := sorted(path.glob("*.gguf"))):
        raise foreign_error(others[0], "GGUF")
    if len(found) != 1:
        raise UserError(
            f"The folder {path} does not say which checkpoint to take.",
            expected="exactly one checkpoint (one index, one .safetensors or one .pth)",
            got=", ".join(file.name for file in found) or "none",
            remedy="pass the file itself (of a Hugging Face repository: org/repo:file)",
        )
    return found[0]


def open_source(path: Path) -> TensorSource:
    """The tensors under the names that they are stored by; of a shard, those of its whole set. Raises UserError."""
    file = find_weights(path)
    head = _head(file)
    if head.startswith(b"GGUF") or file.suffix == ".gguf":
        raise foreign_error(file, "GGUF")
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return TorchFile(file)
    if file.name.endswith(INDEX_SUFFIX):
        return ShardedSafetensors.of_index(file)
    if file.suffix == ".safetensors" or _is_safetensors(head):
        shards = _shards(file)
        return SafetensorsFile(file) if shards is None else ShardedSafetensors.of_shards(shards)
    if file.suffix in TORCH_SUFFIXES:
        return TorchFile(file)
    raise UserError(f"{file} is of no supported format.", expected=_SUPPORTED, got=file.suffix or "no suffix")


def _head(file: Path) -> bytes:
    descriptor = open_input(file, "a checkpoint")
    try:
        return os.read(descriptor, 9)
    finally:
        os.close(descriptor)


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header with its bracket."""
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def _set_of(path: Path) -> tuple[str, int] | None:
    """What the shards of one checkpoint have in common: the name before the number, and how many they are."""
    match = SHARD.fullmatch(path.name)
    return (match["stem"], int(match["count"])) if match else None


def _shards(path: Path) -> list[Path] | None:
    """All shards of the set that this one is of, in order; None for another file. UserError where one is missing."""
    key = _set_of(path)
    if key is None:
        return None
    numbered = {}
    for other in sorted(path.parent.iterdir()):
        match = SHARD.fullmatch(other.name)
        if match and _set_of(other) == key:
            numbered[int(match["number"])] = other
    missing = next((n for n in range(1, key[1] + 1) if n not in numbered), None)
    if missing is not None:
        raise UserError(
            f"A shard of {path} is missing.",
            expected=f"{key[1]} files beside each other",
            got=f"none of number {missing}",
            remedy="download the whole folder again",
        )
    return [numbered[number] for number in sorted(numbered) if 1 <= number <= key[1]]
