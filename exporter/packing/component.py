"""The text encoder's and the VAE's checkpoints: any supported file → tensors under Wan's names, checked and packed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from exporter.checkpoint.files import find_weights, open_source
from exporter.checkpoint.foreign import refuse_foreign
from exporter.checkpoint.kinds import described, refuse_adapter
from exporter.checkpoint.names import unwrapped
from exporter.checkpoint.source import TensorMeta, bands
from exporter.checkpoint.table import Expected, differences, listing
from exporter.networks.dit.weights import FORMAT_VERSION
from exporter.networks.weight_spec import WeightSpec
from exporter.packing.packer import Packer
from exporter.packing.writer import SafetensorsWriter
from plugins.errors import UserError


@dataclass(frozen=True)
class ComponentFormat:
    """How one component is published and packed.

    ``rename`` gives Wan's name of a stored one, ``expected`` is keyed by Wan's names, ``sources`` gives those that make
    up a packed tensor. In a whole release, ``subfolder`` is diffusers' and ``pattern`` matches Wan's own file.
    ``choices`` are those that decide how it is packed: a packed file's header says them. ``others`` are tensors of the
    whole model that the component is a part of: they are passed over.
    """

    title: str
    subfolder: str
    pattern: str
    rename: Callable[[str], str]
    expected: Mapping[str, Expected]
    packed: Mapping[str, WeightSpec]
    sources: Callable[[str], tuple[str, ...]]
    choices: Mapping[str, str] = field(default_factory=dict)
    others: re.Pattern[str] | None = None


class ComponentCheckpoint:
    """A checkpoint that fits a format. Raises UserError listing what does not.

    ``passed_over``: stored names of what else of the whole model the file holds.
    """

    def __init__(self, path: Path, form: ComponentFormat) -> None:
        self.path = locate(path, form)
        self._source = open_source(self.path)
        whole = self._source.tensors
        refuse_adapter(self.path, whole)
        others = [name for name in whole if form.others and form.others.fullmatch(unwrapped(name))]
        self.passed_over = tuple(others)
        stored = {name: meta for name, meta in whole.items() if name not in set(others)}
        refuse_foreign(self.path, stored)
        self._stored = _renamed(stored, form.rename)
        problems = differences(form.expected, {name: stored[theirs] for name, theirs in self._stored.items()})
        if problems:
            raise UserError(
                f"{self.path} is not a checkpoint of the {form.title}.",
                expected=f"the tensors of the {form.title}, in Wan's or {form.subfolder} names",
                got=f"{described(stored)}; {listing(problems)}",
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the tensors come from."""
        return self._source.files

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this name of Wan's."""
        return name in self._stored

    def bands(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor by Wan's name, in the dtype it is stored in, by consecutive rows."""
        return bands(self._source, self._stored[name])


def locate(path: Path, form: ComponentFormat) -> Path:
    """The checkpoint that a path means: itself, or the component's part of a whole release."""
    if path.is_dir():
        own = sorted(path.glob(form.pattern))
        if len(own) == 1:
            return own[0]
        if (path / form.subfolder).is_dir():
            return find_weights(path / form.subfolder)
    return find_weights(path)


#: transformers stores umT5's embedding under one of two names, or under both: it is one tensor.
_TIED = frozenset({"shared.weight", "encoder.embed_tokens.weight"})


def _renamed(stored: Iterable[str], rename: Callable[[str], str]) -> dict[str, str]:
    """Wan's name → stored name. Raises UserError where two stored names mean the same tensor."""
    found: dict[str, str] = {}
    for theirs in stored:
        name = rename(unwrapped(theirs))
        if name in found and {unwrapped(theirs), unwrapped(found[name])} != _TIED:
            raise UserError(
                f"The checkpoint holds {name} twice.",
                got=f"{found[name]} and {theirs}",
                remedy="keep one of the two sets of weights",
            )
        found[name] = theirs
    return found


def component_table(form: ComponentFormat) -> dict[str, TensorMeta]:
    """The tensors of a packed file."""
    return {name: TensorMeta(spec.shape, spec.dtype) for name, spec in form.packed.items()}


def component_metadata(form: ComponentFormat) -> dict[str, str]:
    """What a packed file's header says of it."""
    return {"format_version": FORMAT_VERSION, "component": form.title, **form.choices}


def pack_component(
    checkpoint: ComponentCheckpoint,
    form: ComponentFormat,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the packed file, tensor by tensor; the same input gives the same bytes. Raises UserError as pack does."""
    table, packer = component_table(form), Packer(checkpoint, form.sources)
    with SafetensorsWriter(out, table, component_metadata(form), progress) as writer:
        for name, meta in table.items():
            writer.write(name, packer.pieces(name, meta))
