"""Opening a checkpoint: any supported file or folder → tensors under canonical names, checked against the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from exporter.checkpoint.files import open_source
from exporter.checkpoint.foreign import refuse_foreign
from exporter.checkpoint.kinds import described, refuse_adapter
from exporter.checkpoint.names import canonical_names
from exporter.checkpoint.source import TensorMeta, bands
from exporter.checkpoint.table import (
    checkpoint_tensors,
    fitting_models,
    holds_proj_l,
    is_quantized,
    listing,
    problems,
)
from exporter.models import ModelSpec
from exporter.networks.dit.weights import PROJ_L_SOURCE
from plugins.errors import UserError

_CONV3D = (1, 2, 2)  # Wan's own patch embedding is a Conv3d with this kernel


class NamedTensors:
    """A checkpoint's tensors under canonical names, not checked against any model.

    Raises UserError if the file is damaged, refused, or quantized another way than the authors'.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source = open_source(path)
        stored = self._source.tensors
        refuse_adapter(path, stored)
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
    def metadata(self) -> Mapping[str, str]:
        """What the files say of themselves."""
        return self._source.metadata

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
            yield band.reshape((*band.shape[:1], *self.tensors[name].shape[1:]))


def _flat_patch(name: str, meta: TensorMeta) -> TensorMeta:
    """Conv3d [D,C,1,2,2] → Linear [D,C·4]: same bytes, features ordered (c, kt, kh, kw) in both."""
    if name == "patch_embedding.weight" and len(meta.shape) == 5 and meta.shape[2:] == _CONV3D:
        return TensorMeta((meta.shape[0], meta.shape[1] * 4), meta.dtype)
    return meta


class ModelTensors(Protocol):
    """One expert's tensors under canonical names, wherever they are read from."""

    path: Path

    @property
    def tensors(self) -> Mapping[str, TensorMeta]: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def quantized(self) -> bool: ...

    @property
    def has_proj_l(self) -> bool: ...

    def load(self, name: str) -> torch.Tensor: ...

    def bands(self, name: str) -> Iterator[torch.Tensor]: ...


class Checkpoint:
    """One expert's checkpoint that fits ``model``: every canonical name, its shape and dtype, and its data on demand.

    Where the file has no proj_l and that was allowed, ``has_proj_l`` is False and proj_l loads as fp32 zeros, which
    means no linear branch; the caller reports it.
    """

    def __init__(self, source: ModelTensors, model: ModelSpec) -> None:
        self.named = source
        self.path = source.path
        self.files: tuple[Path, ...] = source.files
        self.loras = ""  # what was added to it, as a title
        self.dequantized: frozenset[str] = frozenset()  # modules that were INT8 before something was added
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

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this canonical name."""
        return name in self._tensors

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype, without reading the data."""
        return self._tensors[name]

    def load(self, name: str) -> torch.Tensor:
        """One tensor in the dtype it is stored in; the -quant form has int8_weight and scale. Raises UserError."""
        if name not in self.named.tensors and name in self._tensors:
            return torch.zeros(self._tensors[name].shape)
        return self.named.load(name)

    def bands(self, name: str) -> Iterator[torch.Tensor]:
        """The same by consecutive rows: whole 128-row blocks at a time, but for the last."""
        if name in self.named.tensors:
            yield from self.named.bands(name)
        else:
            yield self.load(name)


def open_checkpoint(path: Path, model: ModelSpec, *, allow_missing_proj_l: bool = False) -> Checkpoint:
    """One expert's checkpoint, checked against the model's table. Raises UserError listing what does not fit."""
    source = NamedTensors(path)
    bare = not source.has_proj_l
    found = problems(model, source.tensors, without_proj_l=bare)
    if found:
        _refuse_other_model(path, model, source)
        raise UserError(
            f"{path} is not a checkpoint of {model.name}.",
            expected=f"the tensors of {model.name}",
            got=f"{described(source.tensors)}; {listing(found)}",
            remedy="pass a checkpoint of this model",
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


def _refuse_other_model(path: Path, model: ModelSpec, source: NamedTensors) -> None:
    """Raises UserError for a whole checkpoint of another model of the table: the files were mixed up, nothing else."""
    if others := fitting_models(source.tensors):
        raise UserError(
            f"{path} is a checkpoint of another model than {model.name}.",
            expected=f"one of {model.name}",
            got=f"one of {' or '.join(others)}: {described(source.tensors)}",
            remedy=f"pass the checkpoint of {model.name}, or --model {others[0]}",
        )
