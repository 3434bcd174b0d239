"""Checkpoint → the packed weights of one expert: one safetensors file, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from typing import Protocol

import torch

from exporter.checkpoint.finite import all_finite
from exporter.checkpoint.reader import Checkpoint
from exporter.checkpoint.source import TensorMeta
from exporter.checkpoint.table import check_linear
from exporter.models import ModelSpec
from exporter.networks.dit.weights import BLOCK_LINEARS, PROJ_L_SOURCE, packed_metadata, packed_tensors
from exporter.networks.weight_spec import LinearMode
from exporter.packing.quantize import block_dequantize, block_quantize
from exporter.packing.writer import SafetensorsWriter
from plugins.errors import UserError
from plugins.torch_dtypes import torch_dtype

_PIECE = 2**22  # elements converted and checked at once: bounds the temporaries beside the largest matrices


def pack(
    reader: Checkpoint,
    model: ModelSpec,
    out: Path,
    *,
    linear: LinearMode = "int8",
    progress: Callable[[int, int], None] | None = None,
) -> float | None:
    """Write ``packed_tensors(model, linear)`` to ``out``; the same input gives the same bytes.

    A -quant checkpoint's int8 weights and scales pass through bit for bit. ``progress(done, total)`` counts bytes.
    Raises UserError if the checkpoint is of another model or holds NaN, or the disk has no room; ``out`` is then,
    and after KeyboardInterrupt, what it was before. Returns how far INT8 matrices that a LoRA changed are from what
    they should be, by their second rounding alone: RMS, as a share of the weights' own; None where there are none.
    """
    if reader.model != model:
        raise UserError("The checkpoint was opened for another model.", expected=model.name, got=reader.model.name)
    check_linear(reader.path, linear, quantized=reader.quantized)
    table = {name: TensorMeta(spec.shape, spec.dtype) for name, spec in packed_tensors(model, linear).items()}
    metadata = packed_metadata(model, linear, has_proj_l=reader.has_proj_l)
    if reader.loras:
        metadata["loras"] = reader.loras
    packer = Packer(reader, watched=reader.dequantized)
    with SafetensorsWriter(out, table, metadata, progress) as writer:
        for name, meta in table.items():
            writer.write(name, packer.pieces(name, meta))
    return packer.rounding


def sources(name: str) -> tuple[str, ...]:
    """The checkpoint's tensors whose rows make up one packed tensor, in order."""
    prefix, _, rest = name.partition(".self_attn.proj_l.")
    if rest:
        return (f"{prefix}.{PROJ_L_SOURCE}.{rest}",)
    if not name.startswith("blocks."):
        return (name,)
    _, layer, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    return tuple(
        f"blocks.{layer}.{part}.{leaf}" if part else f"blocks.{layer}.{leaf}"
        for part in BLOCK_LINEARS.get(module, (module,))
    )


class Bands(Protocol):
    """A checkpoint's tensors by consecutive rows."""

    def holds(self, name: str) -> bool: ...

    def bands(self, name: str) -> Iterator[torch.Tensor]: ...


class Packer:
    """Turns the checkpoint's tensors into packed ones; holds a quantized Linear's scales until their turn comes.

    ``sources`` gives the names of the checkpoint's tensors that make up a packed one; all but the last of a quantized
    Linear have multiples of 128 rows. ``watched`` are modules whose rounding is measured.
    """

    def __init__(
        self,
        reader: Bands,
        sources: Callable[[str], tuple[str, ...]] = sources,
        watched: frozenset[str] = frozenset(),
    ) -> None:
        self._reader, self._sources, self._watched = reader, sources, watched
        self._scales: dict[str, torch.Tensor] = {}
        self._squares = [0.0, 0.0]  # of what rounding changed, and of the weights

    @property
    def rounding(self) -> float | None:
        """How far the watched modules' INT8 matrices are from what they were made of, RMS, relative; None: no such."""
        changed, whole = self._squares
        return sqrt(changed / whole) if whole else None

    def pieces(self, name: str, meta: TensorMeta) -> Iterator[torch.Tensor]:
        """The packed tensor's rows, one source at a time."""
        for source in self._sources(name):
            module, _, leaf = source.rpartition(".")
            if leaf == "int8_weight" and not self._reader.holds(source):
                scales = []
                for band in self._reader.bands(f"{module}.weight"):
                    quantized, scale = block_quantize(band)
                    if module in self._watched:
                        self._squares[0] += float((block_dequantize(quantized, scale) - band).square().sum())
                        self._squares[1] += float(band.square().sum())
                    scales.append(_finite(scale, f"{module}.weight"))
                    yield quantized
                self._scales[f"{module}.scale"] = torch.cat(scales)
            elif source in self._scales:
                yield self._scales.pop(source)
            else:
                # Modulations lose their leading 1; the rest keep their shape: only the bytes matter here.
                for band in self._reader.bands(source):
                    yield from converted(band, meta.dtype, source)


def converted(tensor: torch.Tensor, dtype: str, name: str) -> Iterator[torch.Tensor]:
    """The tensor in another dtype, by consecutive pieces. Raises UserError on NaN or infinity."""
    for piece in tensor.reshape(-1).split(_PIECE):
        yield _finite(piece.to(torch_dtype(dtype)), name)


def _finite(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor itself. Raises UserError on NaN or infinity, which would poison every video without a word."""
    if tensor.is_floating_point() and not all_finite(tensor):
        raise UserError(
            f"The checkpoint's {name} holds NaN or infinity.",
            expected="finite weights",
            remedy="the file is damaged or its training diverged: take another copy",
        )
    return tensor
