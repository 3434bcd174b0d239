"""The bundle's TensorRT engines on the GPU they were built for, run by Polygraphy's own runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.builder.flavour import load
from exporter.compare.machines.machine import GraphMachine
from exporter.compare.machines.weights import Weights
from exporter.networks.dit.weights import Stage
from plugins.errors import UserError
from runtime.backends.loader import EngineLoader, make_logger
from runtime.bundle import OUTPUT_SUFFIX, Manifest


class EngineMachine(GraphMachine):
    """Three engines on one device, with the bundle's weights as inputs. ``close`` frees them.

    Raises UserError where an engine does not load.
    """

    def __init__(
        self, name: str, folder: Path, manifest: Manifest, weights: Weights, note: Callable[[str], None]
    ) -> None:
        """The engines of the bundle in ``folder``; ``note`` as of an EngineLoader."""
        super().__init__(name, torch.device("cuda"))
        entries = manifest.stages_of("dit")
        self._weights = weights
        self._outputs = {entry.name: tuple(entry.gives) for entry in entries}
        from polygraphy import config

        # Read when Polygraphy first imports TensorRT.
        config.USE_TENSORRT_RTX = manifest.gpu.flavour == "tensorrt_rtx"
        from polygraphy.backend.trt import TrtRunner
        from polygraphy.exception import PolygraphyException

        trt = load(manifest.gpu.flavour)
        self._loader = EngineLoader(trt, make_logger(trt), manifest, note)
        self._runners: dict[str, Any] = {
            entry.name: TrtRunner(self._loader.load(folder / str(entry.engine)), name=f"{name} {entry.name}")
            for entry in entries
        }
        for stage, runner in self._runners.items():
            try:
                runner.activate()
            except PolygraphyException as error:
                self.close()
                raise UserError(
                    f"{folder / stage}.engine does not load.",
                    got=str(error).strip() or type(error).__name__,
                    remedy="export the bundle again here, or leave tensorrt out of --against",
                ) from error

    def _run(self, stage: Stage, expert: str, feed: Mapping[str, Tensor], layer: int = 0) -> tuple[Tensor, ...]:
        weights = self._weights(expert, stage, layer)
        inputs = {name: tensor.to(self.device).contiguous() for name, tensor in {**feed, **weights}.items()}
        torch.cuda.synchronize(self.device)  # the runner has a stream of its own
        out = self._runners[stage].infer(inputs)
        return tuple(out[name + OUTPUT_SUFFIX].to(self.device) for name in self._outputs[stage])

    def close(self) -> None:
        for runner in self._runners.values():
            if runner.is_active:
                runner.deactivate()
