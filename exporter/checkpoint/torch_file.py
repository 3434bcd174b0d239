"""TurboDiffusion's .pth files: read with weights_only, so that nothing in them runs, and mapped, not loaded."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from exporter.checkpoint.source import TensorMeta
from plugins.errors import UserError
from plugins.torch_dtypes import dtype_name

_IGNORED_SUFFIX = "._extra_state"  # bookkeeping of training modules: no weights


def _read(path: Path) -> object:
    """The unpickled content; tensor data stays on disk. Raises UserError."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.", expected="a checkpoint")
    if not zipfile.is_zipfile(path):
        # torch's old format cannot be mapped, and neither can a bare pickle, which is not looked at at all.
        raise UserError(
            f"{path} is not a whole .pth file.",
            expected="a zip archive as torch.save has written since 1.6",
            got="another format, or a truncated file",
            remedy="download it again, or load and torch.save it with a current PyTorch",
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it is damaged, or holds Python objects that would run code.",
            expected="a state dict of tensors (weights_only=True)",
            got=str(error).splitlines()[0],
            remedy="take the checkpoint from its publisher; safetensors files cannot hold code",
        ) from error
    except Exception as error:  # whatever a hostile archive makes of torch's reader, it is the file's fault
        raise UserError(
            f"{path} cannot be read as a .pth file.",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            remedy="download it again",
        ) from error


def _meta(tensor: torch.Tensor) -> TensorMeta:
    return TensorMeta(tuple(tensor.shape), dtype_name(tensor.dtype))


class TorchFile:
    """A .pth state dict, bare or under "state_dict". Raises UserError."""

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
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise UserError(
                    f"{path} holds a tensor that cannot be read.",
                    expected="dense tensors",
                    got=f"{name}: {value.layout}, {value.device}, {value.dtype}",
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
