"""Opening a checkpoint: any supported file or folder → tensors under canonical names, checked against the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from exporter.checkpoint.foreign import foreign_error, refuse_foreign
from exporter.checkpoint.names import canonical_names
from exporter.checkpoint.safetensors_file import INDEX_SUFFIX, SafetensorsFile, ShardedSafetensors
from exporter.checkpoint.source import TensorMeta, TensorSource, bands
from exporter.checkpoint.table import (
    checkpoint_tensors,
    fitting_models,
    holds_proj_l,
    is_quantized,
    listing,
    problems,
)
from exporter.checkpoint.torch_file import TorchFile
from exporter.models import ModelSpec
from exporter.networks.dit.weights import PROJ_L_SOURCE
from plugins.errors import UserError

TORCH_SUFFIXES = (".pth", ".pt")
_SUPPORTED = "a .safetensors or .pth file, a *.safetensors.index.json, or a folder holding one of them"
_CONV3D = (1, 2, 2)  # Wan's own patch embedding is a Conv3d with this kernel


def weight_files(folder: Path) -> list[Path]:
    """The checkpoints directly in a folder: indices, else safetensors files, else .pth files (Wan's T5 and VAE)."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for suffixes in ((INDEX_SUFFIX,), (".safetensors",), TORCH_SUFFIXES):
        if found := [path for path in files if path.name.endswith(suffixes)]:
            return found
    return []


def find_weights(path: Path) -> Path:
    """The one checkpoint file that a path means. Raises UserError if there is none, or more than one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"There is no checkpoint at {path}.", expected=_SUPPORTED, got="no such file or folder")
    found = weight_files(path)
    if not found and (path / "transformer").is_dir():  # a diffusers pipeline
        found = weight_files(path / "transformer")
    if len(found) != 1:
        raise UserError(
            f"The folder {path} does not say which checkpoint to take.",
            expected="exactly one checkpoint (one index, one .safetensors or one .pth)",
            got=", ".join(file.name for file in found) or "none",
            remedy="pass the file itself (of a Hugging Face repository: org/repo:file)",
        )
    return found[0]


def open_source(path: Path) -> TensorSource:
    """The file's tensors under the names it stores. Raises UserError."""
    file = find_weights(path)
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise UserError(f"{file} cannot be read.", got=str(error)) from error
    if magic == b"GGUF" or file.suffix == ".gguf":
        raise foreign_error(file, "GGUF")
    if file.name.endswith(INDEX_SUFFIX):
        return ShardedSafetensors(file)
    if file.suffix == ".safetensors":
        return SafetensorsFile(file)
    if file.suffix in TORCH_SUFFIXES:
        return TorchFile(file)
    raise UserError(f"{file} is of no supported format.", expected=_SUPPORTED, got=file.suffix or "no suffix")


class NamedTensors:
    """A checkpoint's tensors under canonical names, not checked against any model.

    Raises UserError if the file is damaged, refused, or quantized another way than the authors'.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source = open_source(path)
        stored = self._source.tensors
        refuse_foreign(path, stored)
        self._stored = canonical_names(stored)
        self.tensors: dict[str, TensorMeta] = {
            name: _flat_patch(name, stored[theirs]) for name, theirs in self._stored.items()
        }

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the tensors come from."""
        return self._source.files

    @property
    def quantized(self) -> bool:
        """Whether this is the authors' -quant form."""
        return is_quantized(self.tensors)

    @property
    def has_proj_l(self) -> bool:
        return holds_proj_l(self.tensors)

    def load(self, name: str) -> torch.Tensor:
        """The tensor, in the dtype it is stored in. Raises UserError if its bytes cannot be read."""
        return self._source.load(self._stored[name]).reshape(self.tensors[name].shape)

    def bands(self, name: str) -> Iterator[torch.Tensor]:
        """The same by consecutive rows."""
        for band in bands(self._source, self._stored[name]):
            yield band.reshape(band.shape[0], *self.tensors[name].shape[1:])


def _flat_patch(name: str, meta: TensorMeta) -> TensorMeta:
    """Conv3d [D,C,1,2,2] → Linear [D,C·4]: same bytes, features ordered (c, kt, kh, kw) in both."""
    if name == "patch_embedding.weight" and len(meta.shape) == 5 and meta.shape[2:] == _CONV3D:
        return TensorMeta((meta.shape[0], meta.shape[1] * 4), meta.dtype)
    return meta


class Checkpoint:
    """One expert's checkpoint that fits ``model``: every canonical name, its shape and dtype, and its data on demand.

    Where the file has no proj_l and that was allowed, ``has_proj_l`` is False and proj_l loads as fp32 zeros, which
    means no linear branch; the caller reports it.
    """

    def __init__(self, source: NamedTensors, model: ModelSpec) -> None:
        self._source = source
        self.path = source.path
        self.files = source.files
        self.model = model
        self.quantized = source.quantized
        self.has_proj_l = source.has_proj_l
        zeros = {
            name: TensorMeta(want.shape, "fp32")
            for name, want in checkpoint_tensors(model, quantized=self.quantized).items()
            if name not in source.tensors
        }
        self._tensors = {**source.tensors, **zeros}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype, without reading the data."""
        return self._tensors[name]

    def load(self, name: str) -> torch.Tensor:
        """One tensor in the dtype it is stored in; the -quant form has int8_weight and scale. Raises UserError."""
        if name not in self._source.tensors and name in self._tensors:
            return torch.zeros(self._tensors[name].shape)
        return self._source.load(name)

    def bands(self, name: str) -> Iterator[torch.Tensor]:
        """The same by consecutive rows: whole 128-row blocks at a time, but for the last."""
        if name in self._source.tensors:
            yield from self._source.bands(name)
        else:
            yield self.load(name)


def open_checkpoint(path: Path, model: ModelSpec, *, allow_missing_proj_l: bool = False) -> Checkpoint:
    """One expert's checkpoint, checked against the model's table. Raises UserError listing what does not fit."""
    source = NamedTensors(path)
    bare = not source.has_proj_l
    found = problems(model, source.tensors, without_proj_l=bare)
    if found:
        others = fitting_models(source.tensors)
        raise UserError(
            f"{path} is not a checkpoint of {model.name}.",
            expected=f"the tensors of {model.name}",
            got=listing(found),
            remedy=f"it fits --model {' or '.join(others)}" if others else "pass a checkpoint of this model",
        )
    if bare and not allow_missing_proj_l:
        raise UserError(
            f"{path} has no proj_l: it was not trained with sparse-linear attention.",
            expected=f"blocks.N.{PROJ_L_SOURCE}.weight and .bias",
            got="none of them",
            remedy="pass a TurboDiffusion checkpoint, or ask for --attention original, sage or sla, which then run "
            "without the linear branch",
        )
    return Checkpoint(source, model)
