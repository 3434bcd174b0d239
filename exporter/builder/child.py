"""The child process that builds one engine: ``main``, in a Python started isolated (builder.parent).

A process of its own, because TensorRT may end the process it runs in, and because libtensorrt_rtx.so must be on
LD_LIBRARY_PATH before the process starts. Writes JSON lines to stdout: progress while building, then the result.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

_SET_DEATH_SIGNAL = 1  # of Linux's prctl(2)
_ASK, _NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000  # of Linux's personality(2)
_ANEW = "anew"  # says that this process was started by itself
_DESCRIPTOR = 100  # no library opens that many files
_STACK = 64 << 20  # bytes, of which a graph of all blocks needs more than a thread gets where ulimit knows no limit


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to build: ONNX file → engine file, the GPU's name, and (min, opt, max) of each of its symbols.

    ``embed``: build with the plugin library, not with Python's plugins, and put it into the engine.
    """

    onnx: str
    engine: str
    log: str
    gpu: str
    profile: tuple[int, int, int]
    embed: bool = False


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the builder said: its "Total Activation Memory" in bytes, and the layers by kind after parsing."""

    activation_bytes: int | None
    plugin_layers: list[str]
    other_layers: list[str]


def _emit(kind: str, value: Any) -> None:
    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()


def _logger(trt: Any, path: str) -> Any:
    class FileLogger(trt.ILogger):  # type: ignore[misc]
        """Keeps TensorRT's messages, informational ones included, in the bundle's log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 (lives as long as the logger)
            self.activation: int | None = None
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.VERBOSE:
                return
            self.file.write(f"[{severity.name}] {message}\n")
            self.file.flush()
            if match := re.search(r"Total Activation Memory: (\d+)", message):
                self.activation = int(match[1])
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return FileLogger()


def _monitor(trt: Any) -> Any:
    class PipeMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells the parent the step of the outermost phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[int, bool]] = {}

        def phase_start(self, phase_name: str, parent_phase: Any, num_steps: int) -> None:
            self.phases[phase_name] = (num_steps, parent_phase is None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total, outermost = self.phases.get(phase_name, (0, False))
            if outermost:
                _emit("progress", [step + 1, total])
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    return PipeMonitor()


def parse(trt: Any, builder: Any, logger: Any, onnx: str) -> tuple[Any, Any]:
    """The strongly typed network of a graph's file, and the parser that keeps its constants. Raises RuntimeError."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(onnx):
        raise RuntimeError("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    return network, parser


def builder_config(trt: Any, builder: Any, network: Any, gpu: str, profile: Sequence[int]) -> Any:
    """For a GPU by its name, and (min, opt, max) of each of the network's symbols."""
    from exporter.builder.flavour import target
    from exporter.gpus import gpu_named

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: the fp32 head and time MLP would run in TF32
    target(trt, config, gpu_named(gpu))
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            shapes.set_shape(tensor.name, *(_shape(tensor, size) for size in profile))
    config.add_optimization_profile(shapes)
    return config


def _shape(tensor: Any, size: int) -> tuple[int, ...]:
    """The shape of an input whose symbols all have this value; a dim may be a multiple, such as 8*H."""
    from runtime.dims import split_dim

    return tuple(
        split_dim(tensor.get_dimension_name(axis))[0] * size if dim == -1 else dim
        for axis, dim in enumerate(tensor.shape)
    )


def build(request: BuildRequest) -> BuildResult:
    """Build one engine in this process and write it. Raises RuntimeError with TensorRT's own errors."""
    from exporter.builder.flavour import load
    from exporter.gpus import gpu_named
    from plugins.library import installed_library, register
    from plugins.registry import OPS

    trt = load(gpu_named(request.gpu).flavour)
    logger = _logger(trt, request.log)
    register(trt, OPS, "library" if request.embed else "python")
    builder = trt.Builder(logger)
    network, _parser = parse(trt, builder, logger, request.onnx)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    ours = [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    others = [f"{layer.type.name} {layer.name}" for layer in layers if layer.type != trt.LayerType.PLUGIN_V3]
    config = builder_config(trt, builder, network, request.gpu, request.profile)
    if request.embed:
        config.plugins_to_serialize = [_short_name(installed_library(OPS))]
    config.progress_monitor = _monitor(trt)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("\n".join(logger.errors) or "TensorRT built no engine and gave no reason")
    with Path(request.engine).open("wb") as file:
        file.write(engine)
    return BuildResult(activation_bytes=logger.activation, plugin_layers=ours, other_layers=others)


def _short_name(path: Path) -> str:
    """A name of the file for this process, as long as every other file's."""
    return f"/proc/self/fd/{os.dup2(os.open(path, os.O_RDONLY), _DESCRIPTOR)}"


def _fix_addresses() -> None:
    """Start this process anew without address randomization; return where it is so already, or not allowed."""
    libc = ctypes.CDLL(None)
    if sys.argv[2:] != [_ANEW] and libc.personality(libc.personality(_ASK) | _NO_RANDOMIZE) != -1:
        os.execv(sys.executable, [sys.executable, "-I", *sys.argv[:2], _ANEW])


def _build_repeatably(request: BuildRequest) -> BuildResult:
    """``build``, with the same bytes at any time and from any folder: TensorRT orders some tables by addresses.

    Those follow from all that was allocated before, lengths of paths included. So the imports are made here, the graph
    gets a name without a folder, and the engine is built in a new thread, whose heap glibc starts empty. The plugin
    library is loaded here too; with it some tables come in another order than with Python's plugins all the same.
    """
    from exporter.builder.flavour import load
    from exporter.gpus import gpu_named

    trt = load(gpu_named(request.gpu).flavour)
    for module in ("plugins.registry", "plugins.library", "runtime.dims"):
        importlib.import_module(module)
    if request.embed:
        from plugins.library import register
        from plugins.registry import OPS

        register(trt, OPS, "library")
    onnx = Path(request.onnx).absolute()
    written = {"engine": str(Path(request.engine).absolute()), "log": str(Path(request.log).absolute())}
    os.chdir(onnx.parent)
    threading.stack_size(_STACK)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build, msgspec.structs.replace(request, onnx=onnx.name, **written)).result()


def die_with(parent: int) -> None:
    """End with the parent, however that ends: a build of minutes and gigabytes is nobody's then."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        sys.exit(1)


def main(parent: int) -> None:
    """Build what ``sys.argv[1]`` requests, for the process ``parent``."""
    die_with(parent)
    _fix_addresses()
    request = msgspec.convert(json.loads(Path(sys.argv[1]).read_text("ascii")), BuildRequest)
    if _ANEW not in sys.argv:
        with Path(request.log).open("a", encoding="utf-8") as log:
            log.write("[WARNING] Address randomization stays on here: the engine's tables may come in another order.\n")
    try:
        result = _build_repeatably(request)
    except (RuntimeError, OSError) as error:  # OSError: no room or no right to write the engine
        _emit("error", str(error))
        sys.exit(1)
    _emit("result", msgspec.to_builtins(result))
