"""A checkpoint with LoRAs added to it, tensor by tensor as it is read: nothing is merged before its turn comes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from exporter.checkpoint.lora import LoadedLoras
from exporter.checkpoint.reader import Checkpoint
from exporter.checkpoint.source import TensorMeta
from exporter.networks.weight_spec import ceil_div
from exporter.packing.quantize import BLOCK, block_dequantize

_INT8, _SCALE = ".int8_weight", ".scale"


def float_table(checkpoint: Checkpoint) -> dict[str, TensorMeta]:
    """What a LoRA may change: the checkpoint's tensors under the names of the float form, whichever this is."""
    names = {name: name.replace(_INT8, ".weight") for name in checkpoint.names}
    scales = {name.replace(_INT8, _SCALE) for name in names if name.endswith(_INT8)}
    return {bare: checkpoint.meta(name) for name, bare in names.items() if name not in scales}


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint and what LoRAs add: changed tensors come in fp32, all others as they are stored.

    A matrix of a -quant checkpoint that is changed is dequantized: it has ``weight`` in place of ``int8_weight`` and
    ``scale``. ``dequantized`` are the modules of those.
    """

    def __init__(self, base: Checkpoint, loras: LoadedLoras) -> None:
        super().__init__(base.named, base.model)
        self.files = (*base.files, *loras.files)
        self.loras = loras.title
        self._changes = loras.changes
        modules = {name.removesuffix(".weight") for name in loras.changes if name.endswith(".weight")}
        self.dequantized = frozenset(module for module in modules if base.holds(module + _INT8))
        shapes = float_table(base)
        left = {module + leaf for module in self.dequantized for leaf in (_INT8, _SCALE)}
        kept = {name: meta for name, meta in self._tensors.items() if name not in left}
        self._tensors = kept | {name: TensorMeta(shapes[name].shape, "fp32") for name in loras.changes}

    def load(self, name: str) -> torch.Tensor:
        """One tensor, in fp32 where a LoRA changes it. Raises UserError."""
        return torch.cat(list(self.bands(name))) if name in self._changes else super().load(name)

    def bands(self, name: str) -> Iterator[torch.Tensor]:
        """The same by consecutive rows: whole 128-row blocks at a time, but for the last."""
        if name not in self._changes:
            yield from super().bands(name)
            return
        row, added = 0, [change.loaded() for change in self._changes[name]]
        for band in self._base_bands(name):
            changed = band.float()
            for rows in added:
                changed = changed + rows(row, band.shape[0]).reshape(band.shape)
            yield changed
            row += band.shape[0]

    def _base_bands(self, name: str) -> Iterator[torch.Tensor]:
        module = name.removesuffix(".weight")
        if module not in self.dequantized:
            yield from super().bands(name)
            return
        scale, row = self.named.load(module + _SCALE), 0
        for band in self.named.bands(module + _INT8):
            yield block_dequantize(band, scale[row // BLOCK : ceil_div(row + band.shape[0], BLOCK)])
            row += band.shape[0]
