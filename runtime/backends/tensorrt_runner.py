"""The TensorRT runner: the engines of text encoder and VAE, loaded when first used, on one allocation of memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from plugins.registry import OPS
from plugins.tensorrt_plugin import register
from runtime.backends.engine import Engine, make_logger
from runtime.backends.protocol import DeviceTensor, Memory
from runtime.bundle import Manifest
from runtime.media_layout import Sizes, media_stage


class TensorrtRunner:
    """A runner (see ``runtime.backends.runner``). Stages take turns in the activation memory, which only grows."""

    def __init__(self, trt: Any, folder: Path, manifest: Manifest, device: Any) -> None:
        self.device = device
        self._trt, self._folder, self._manifest = trt, folder, manifest
        self._log = make_logger(trt)
        register(trt, OPS)  # the text encoder runs before the DiT, and its INT8 engine holds our plugins too
        self._runtime = trt.Runtime(self._log)
        self._engines: dict[str, Engine] = {}
        self._prepared: dict[str, Sizes] = {}
        self._memory: Memory | None = None

    def activation_bytes(self, stage: str, sizes: Sizes) -> int:
        """TensorRT's own figure for these shapes; the stage must be prepared again afterwards."""
        self._prepared.pop(stage, None)
        return self._engine(stage).memory_for(sizes)

    def prepare(self, sizes: Mapping[str, Sizes]) -> None:
        wanted = {stage: given for stage, given in sizes.items() if self._prepared.get(stage) != given}
        if not wanted:
            return
        need = max(self._engine(stage).memory_for(given) for stage, given in wanted.items())
        self._prepared |= wanted
        changed = self._grow(need)
        for stage in self._prepared if changed else wanted:
            memory: Any = self._memory
            self._engines[stage].use_memory(memory.address, memory.nbytes)

    def run(self, stage: str, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        if stage not in self._prepared:
            raise ValueError(f"{stage} runs without being prepared")
        self._engines[stage].run(inputs, outputs, self.device.stream)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.save_cache()  # what cannot be written is compiled again the next time
            engine.close()
        self._engines.clear()
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        self.device.close()

    def _grow(self, nbytes: int) -> bool:
        """Make the activation memory at least this large; whether it is another allocation now."""
        if self._memory is not None and self._memory.nbytes >= nbytes:
            return False
        self.device.finish()
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        self._memory = self.device.allocate(max(1, nbytes))
        return True

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            stage = media_stage(self._manifest, name)
            if stage.engine is None:
                raise UserError(
                    f"The bundle has no engine of {name}: it was exported with --onnx-only.",
                    remedy="export without it, or run with --backend torch",
                )
            path = self._folder / stage.engine
            cache = path.with_suffix(".jitcache") if self._manifest.gpu.flavour == "tensorrt_rtx" else None
            self._engines[name] = Engine(self._trt, self._runtime, self._log, path, stage, cache)
        return self._engines[name]
