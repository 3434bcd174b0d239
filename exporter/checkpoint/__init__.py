"""Reading checkpoints in every published form, and writing safetensors as a stream."""

from __future__ import annotations

from exporter.checkpoint.experts import expert_paths
from exporter.checkpoint.hub import resolve
from exporter.checkpoint.reader import Checkpoint, NamedTensors, open_checkpoint
from exporter.checkpoint.source import TensorMeta
from exporter.checkpoint.writer import SafetensorsWriter

__all__ = [
    "Checkpoint",
    "NamedTensors",
    "SafetensorsWriter",
    "TensorMeta",
    "expert_paths",
    "open_checkpoint",
    "resolve",
]
