"""TurboDiffusion's .pth files: read with weights_only, so that nothing in them runs, and mapped, not loaded."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch

from exporter.checkpoint.source import TensorMeta
from plugins.errors import UserError
from plugins.torch_dtypes import dtype_name
from runtime.input_files import open_input

_IGNORED_SUFFIX = "._extra_state"  # bookkeeping of training modules: no weights
MAX_ENTRIES = 100_000  # of an archive; a model of a thousand tensors has as many
MAX_PICKLE_BYTES = 8 << 20  # names and shapes: some hundred kilobytes
_PICKLE = "data.pkl"
#: What a state dict's pickle names, of which torch takes what it knows to be safe. Not bytearray, which it takes too:
#: that makes memory of a number.
_GLOBALS = re.compile(r"collections OrderedDict|torch(\.[\w.]+)? \w+")


def _read(path: Path) -> object:
    """The unpickled content; tensor data stays on disk. Raises UserError."""
    with os.fdopen(open_input(path, "a checkpoint"), "rb") as file:
        return _loaded(path, file)


def _loaded(path: Path, file: BinaryIO) -> object:
    try:
        _check_archive(path, file)
        # By its descriptor: it is the file that was checked, and torch takes one named .safetensors for another format.
        return torch.load(f"/proc/self/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(path, _first_line(error)) from error
    except Exception as error:  # whatever a hostile archive makes of the readers, it is the file's fault
        raise UserError(
            f"{path} cannot be read as a .pth file.",
            got=f"{type(error).__name__}: {_first_line(error)}",
            remedy="download it again",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Raise UserError unless this is what torch.save writes: entries as they are, and a pickle that names tensors."""
    if not zipfile.is_zipfile(file):
        # torch's old format cannot be mapped, and neither can a bare pickle, which is not looked at at all.
        raise UserError(
            f"{path} is not a whole .pth file.",
            expected="a zip archive as torch.save has written since 1.6",
            got="another format, or a truncated file",
            remedy="download it again, or load and torch.save it with a current PyTorch",
        )
    with zipfile.ZipFile(file) as archive:
        for pickled in _pickles(path, archive.infolist()):
            _check_pickle(path, archive.read(pickled))


def _pickles(path: Path, entries: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The entries of names and shapes: one. Raises UserError where any would grow when it is read, or is too large."""
    pickles = [entry for entry in entries if entry.filename.endswith(_PICKLE)]
    grown = [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]
    large = [entry for entry in pickles if entry.file_size > MAX_PICKLE_BYTES]
    if grown or large or len(entries) > MAX_ENTRIES:
        worst = (grown or large)[:1]
        bad = [f", {entry.filename!a} of {entry.file_size:,} bytes in {entry.compress_size:,}" for entry in worst]
        raise UserError(
            f"{path} is no archive as torch.save writes it.",
            expected=f"at most {MAX_ENTRIES:,} entries, none compressed, and {_PICKLE} of at most "
            f"{MAX_PICKLE_BYTES:,} bytes",
            got="".join([f"{len(entries):,} entries", *bad]),
            remedy="take it from its publisher; load and torch.save an archive that was packed again",
        )
    return pickles


def _check_pickle(path: Path, data: bytes) -> None:
    """Raise UserError where a pickle names what no state dict needs; nothing of it runs here."""
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("GLOBAL", "INST") and not _GLOBALS.fullmatch(str(argument)):
            raise _refused(path, ascii(argument))


def _refused(path: Path, got: str) -> UserError:
    return UserError(
        f"{path} was refused: it is damaged, or holds Python objects that would run code.",
        expected="a state dict of tensors (weights_only=True)",
        got=got,
        remedy="take the checkpoint from its publisher; safetensors files cannot hold code",
    )


def _meta(tensor: torch.Tensor) -> TensorMeta:
    return TensorMeta(tuple(tensor.shape), dtype_name(tensor.dtype))


def _is_held(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory of its own for all elements: with strides of 0, one would stand for billions."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


class TorchFile:
    """A .pth state dict, bare or under "state_dict". Raises UserError."""

    metadata: Mapping[str, str] = MappingProxyType({})

    def __init__(self, path: Path) -> None:
        self.files = (path,)
        content = _read(path)
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping):
            raise UserError(f"{path} holds no state dict.", expected="names → tensors", got=type(content).__name__)
        self._state: dict[str, torch.Tensor] = {}
        for name, value in content.items():
            if isinstance(name, str) and name.endswith(_IGNORED_SUFFIX):
                continue
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise UserError(
                    f"{path} is no plain state dict.",
                    expected="names → tensors",
                    got=f"{name!r}: {type(value).__name__}",
                    remedy="pass the model's state dict, not the whole training state",
                )
            if not _is_held(value):
                raise UserError(
                    f"{path} holds a tensor that cannot be read.",
                    expected="dense tensors, whole in the file",
                    got=f"{name}: {list(value.shape)}, {value.layout}, {value.device}, {value.dtype}",
                )
            self._state[name] = value
        self._tensors = {name: _meta(tensor) for name, tensor in self._state.items()}

    @property
    def tensors(self) -> dict[str, TensorMeta]:
        return self._tensors

    def load(self, name: str) -> torch.Tensor:
        """The tensor, backed by the mapped file."""
        return self._state[name].detach()

    def load_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.load(name)[start:stop]
