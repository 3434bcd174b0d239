"""A machine with an RTX part, for processes that a program starts: what they import by these names stands in.

``stand_in_machine/`` at the front of a path holds a CUDA driver on host memory, and ``tensorrt_rtx``: the real module
with engines that run the stage functions (stand_in_tensorrt.py). An engine is told by its bytes, of whatever bundle in
the folder TURBOTRT_STAND_IN; so they are real ones, as they were built. TURBOTRT_FAULTS, "block 108" → kind as JSON, is
what goes wrong: a stage at an L, by name.
"""

from __future__ import annotations

import os
import signal
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.bundle import MANIFEST_NAME, Manifest, load_manifest
from runtime.dims import shape_of
from runtime.host_code import holds_host_code
from tests.support.host_executor import faults, host_view
from tests.support.stand_in_tensorrt import Config, Context, StandIn

FOLDER = "TURBOTRT_STAND_IN"
MACHINE = Path(__file__).parent / "stand_in_machine"


class StandInRtx:
    """The module: a runtime that knows the engines of all bundles in the folder."""

    def __init__(self) -> None:
        import tensorrt_rtx

        self._real = tensorrt_rtx
        self.known: dict[str, tuple[Manifest, str]] = {}
        for path in Path(os.environ[FOLDER]).rglob(MANIFEST_NAME):
            manifest = load_manifest(path.parent)
            for stage in manifest.stages:
                data = (path.parent / str(stage.engine)).read_bytes()
                self.known[sha256(data).hexdigest()] = manifest, stage.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def Runtime(self, logger: Any) -> Any:
        runtime = SimpleNamespace(engine_host_code_allowed=False)

        def deserialize(data: bytes) -> Any:
            manifest, name = self.known[sha256(bytes(data)).hexdigest()]
            assert runtime.engine_host_code_allowed or not holds_host_code(bytes(data))
            module, stage = StandIn(manifest, lambda stream, work: work(), host_view), manifest.stage(name)
            module.logger = logger
            names = [tensor.name for tensor in (*stage.inputs, *stage.outputs)]
            return SimpleNamespace(
                num_io_tensors=len(names),
                get_tensor_name=names.__getitem__,
                create_runtime_config=Config,
                create_execution_context=lambda config: FaultyContext(module, stage, config),
            )

        runtime.deserialize_cuda_engine = deserialize
        return runtime


class FaultyContext(Context):
    """A context that does at some stages and sizes what a driver or a kernel does on a bad day."""

    def execute_async_v3(self, stream: int) -> bool:
        sizes = self._sizes()
        kind = faults().get(" ".join([self.stage.name, *map(str, sizes.values())]))
        if kind == "raise":
            return self.trt.fail("BlockInt8GemmGelu: enqueue raised an exception on purpose")
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            time.sleep(600)
        ran = super().execute_async_v3(stream)
        if kind == "wrong":
            given = next(iter(self.stage.gives.values()))
            host_view(self.addresses[given.name], shape_of(given.dims, sizes), given.dtype).mul_(1.5)
        return ran
