"""Engines that carry native code: seen by their bytes, run only where the manifest names it and the hash is its."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from msgspec import _core as _msgspec

trt = pytest.importorskip("tensorrt_rtx")

from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime import Pipeline
from runtime.backends.kind import BackendKind
from runtime.backends.loader import EngineLoader, make_logger
from runtime.backends.tensorrt import TENSORRT, TensorrtRunner
from runtime.bundle import Manifest, file_info, load_manifest, write_manifest
from runtime.checks import rebuild_command
from runtime.file_checks import FileChecks
from runtime.host_code import carries_host_code, holds_host_code
from tests.support.bundle_factory import make_bundle
from tests.support.exported import Exported
from tests.support.lazy_device import LazyDevice
from tests.support.progress import SilentProgress
from tests.support.random_bundle import make_random_bundle
from tests.support.stand_in_tensorrt import StandIn, add_engines, host_view

OPTIONS: dict[str, Any] = {"size": (48, 32), "frames": 9, "steps": 1}
TEXT = np.random.default_rng(0).standard_normal((5, 4096), dtype=np.float32)


def elf(kind: int = 3, machine: int = 62, bits: int = 2, order: int = 1, version: int = 1) -> bytes:
    """The beginning of an ELF file: a shared library for x86-64, if nothing else is said."""
    ordered: Literal["little", "big"] = "little" if order == 1 else "big"
    start = b"\x7fELF" + bytes([bits, order, version]) + bytes(9)
    return start + kind.to_bytes(2, ordered) + machine.to_bytes(2, ordered) + bytes(44)


@pytest.mark.parametrize("library", [elf(), elf(machine=183), elf(order=2, machine=21), elf(bits=1, machine=3)])
def test_a_library_is_seen_wherever_it_lies(library: bytes, tmp_path: Path) -> None:
    for before in (b"", b"engine" * 1000, b"\x7fELF" * 3, elf(kind=2, machine=190)):
        assert holds_host_code(before + library)
        (tmp_path / "engine").write_bytes(before + library)
        assert carries_host_code(tmp_path / "engine")


@pytest.mark.parametrize(
    "other",
    [b"", b"\x7fELF", elf()[:19], elf(machine=190), elf(kind=2), elf(version=0), elf(order=3), elf(bits=0)],
    ids=["nothing", "magic", "cut", "GPU", "program", "version", "order", "bits"],
)
def test_what_no_system_would_load_is_none(other: bytes, tmp_path: Path) -> None:
    assert not holds_host_code(b"engine" + other)
    (tmp_path / "engine").write_bytes(other)
    assert not carries_host_code(tmp_path / "engine")


def test_real_engines_and_libraries_are_told_apart(exported: Exported) -> None:
    """Kernels are ELF files too; the interpreter's own extension modules are libraries."""
    manifest = load_manifest(exported.folder)
    assert b"\x7fELF" in (exported.folder / "block.engine").read_bytes()
    assert not any(carries_host_code(exported.folder / str(stage.engine)) for stage in manifest.stages)
    with open(_msgspec.__file__, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        assert holds_host_code(data)


def stand_in_kind(made: list[StandIn]) -> BackendKind:
    """The backend on engines that stand in, which hold that a library needs a runtime that allows it."""

    def open_(folder: Path, manifest: Manifest, report: Any) -> TensorrtRunner:
        device: Any = LazyDevice("copies first")
        device.stream = 0
        made.append(StandIn(manifest, lambda stream, work: device.enqueue("compute", work), host_view))
        return TensorrtRunner(made[-1], folder, manifest, device, report)

    return replace(TENSORRT, check=TORCH.check, open=open_)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """wan-tiny with engines that bring their plugins."""
    add_engines(tmp_path, make_random_bundle(tmp_path, MODELS["wan-tiny"]), elf())
    return tmp_path


def test_engines_that_bring_their_plugins_run_and_say_so(bundle: Path) -> None:
    made: list[StandIn] = []
    report = SilentProgress()
    with Pipeline.load(bundle, backend=stand_in_kind(made), report=report, **OPTIONS) as pipe:
        got = pipe(TEXT, **OPTIONS)
    with Pipeline.load(bundle, backend=TORCH, **OPTIONS) as pipe:
        np.testing.assert_array_equal(got, pipe(TEXT, **OPTIONS))
    # A registry refuses a second library with the same creators: each engine has its own.
    assert [(runtime.libraries, runtime.engine_host_code_allowed) for runtime in made[0].runtimes] == [
        (0, False),
        *[(1, True)] * 3,
    ]
    said = "brings its plugins: native code of this bundle runs in this process"
    assert sum(said in note for note in report.notes) == 3


def test_nothing_of_it_runs_unverified(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"never runs unverified(.|\n)*--verify never(.|\n)*drop --verify never"):
        Pipeline.load(bundle, backend=stand_in_kind([]), verify="never", **OPTIONS)
    Pipeline.load(bundle, backend=TORCH, verify="never", **OPTIONS).close()  # which reads no engines
    manifest = load_manifest(bundle)
    FileChecks(bundle, manifest, "never", SilentProgress()).check(manifest.weights.values())


def load(bundle: Path, name: str) -> None:
    """Load one engine; a runtime that is given any bytes fails."""

    class Untouched(StandIn):
        def Runtime(self, logger: Any) -> Any:
            return object()

    manifest = load_manifest(bundle)
    stand_in = Untouched(manifest, None, host_view)
    EngineLoader(stand_in, make_logger(trt), manifest, lambda _: None).load(bundle / name)


def test_the_bytes_that_are_loaded_are_those_that_are_hashed(bundle: Path) -> None:
    """Whatever was verified before: a file may have changed since."""
    with open(bundle / "block.engine", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"block\.engine carries native code, and is not the file of the manifest"):
        load(bundle, "block.engine")


def test_code_that_the_manifest_does_not_name_is_not_run(bundle: Path) -> None:
    write_manifest(bundle, msgspec.structs.replace(load_manifest(bundle), embedded_library=None))
    with pytest.raises(UserError, match=r"head\.engine carries native code, and its manifest says nothing of it"):
        load(bundle, "head.engine")


def test_the_export_that_makes_it_again_embeds_again(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path)
    assert "--embed-plugins" not in rebuild_command(manifest)
    assert "--embed-plugins" in rebuild_command(msgspec.structs.replace(manifest, embedded_library="0" * 64))


HOSTILE = """
#include <cstdint>
#include <fstream>
__attribute__((constructor)) static void run() { std::ofstream(RAN) << "ran"; }
extern "C" void* const* getCreators(int32_t& count) { count = 0; return nullptr; }
extern "C" void setLoggerFinder(void*) {}
"""
BUILD = """
import sys
import tensorrt_rtx as trt
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
x = network.add_input("x", trt.float32, (4,))
network.mark_output(network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM120, 0)
config.plugins_to_serialize = [sys.argv[1]]
open(sys.argv[2], "wb").write(bytes(builder.build_serialized_network(network, config)))
"""
LOAD = """
import sys
import tensorrt_rtx as trt
runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
assert not runtime.engine_host_code_allowed
runtime.deserialize_cuda_engine(open(sys.argv[1], "rb").read())
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_a_strangers_engine_runs_nothing(tmp_path: Path) -> None:
    """TensorRT for RTX 1.7.1 runs the library of an engine even where host code is not allowed; we do not let it."""
    bundle, ran = tmp_path / "bundle", tmp_path / "ran"
    (tmp_path / "hostile.cpp").write_text(HOSTILE)
    library, engine = tmp_path / "libhostile.so", bundle / "block.engine"
    command = ["g++", "-shared", "-fPIC", f'-DRAN="{ran}"', "-o", str(library), str(tmp_path / "hostile.cpp")]
    subprocess.run(command, check=True)
    manifest = make_bundle(bundle)
    subprocess.run([sys.executable, "-c", BUILD, str(library), str(engine)], check=True)
    assert not ran.exists()
    files = {**manifest.files, engine.name: file_info(engine)}
    write_manifest(bundle, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(UserError, match="carries native code, and its manifest says nothing of it"):
        EngineLoader(trt, make_logger(trt), load_manifest(bundle), lambda _: None).load(engine)
    assert not ran.exists()
    subprocess.run([sys.executable, "-c", LOAD, str(engine)], check=True)
    assert ran.read_text() == "ran", "TensorRT asks first by now: say so in docs/embedding.md"
