"""The protocol between this package and what runs its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from runtime.backends.protocol import Device, DeviceTensor
from runtime.media_layout import Sizes

Activations = Callable[[str, Sizes], int]  # bytes a stage needs while it runs, besides inputs, outputs and weights


class Runner(Protocol):
    """Runs the stages of one component on one device. Weights are given with every call."""

    device: Device

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        """Bytes a stage needs while it runs, besides its inputs, outputs and weights."""

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        """Get ready to run these stages at these sizes: activation memory is allocated, or made larger."""

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """Enqueue a stage, prepared before, on the compute queue. Raises BackendError."""

    def close(self) -> None:
        """Free everything."""
