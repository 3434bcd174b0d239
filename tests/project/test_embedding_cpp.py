"""The C++ of docs/embedding.md: compiled against TensorRT's headers; the example drives engines that stand in."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plugins.native import headers
from runtime.bundle import StageEntry, TensorInfo
from tests.support.bundle_factory import make_bundle
from tests.support.documents import cpp_blocks
from tests.support.paths import ROOT

EXAMPLE = ROOT / "plugins" / "native" / "example" / "dit_step.cpp"
STRICT = ("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wpedantic", "-Wconversion", "-Wshadow")
LENGTH, LAYERS = 16, 3

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def includes() -> list[str]:
    """Options for the headers of TensorRT and CUDA, fetched once for all sessions."""
    folders = {kind: ROOT / "build" / "native-tests" / "headers" / kind for kind in headers.SOURCES}
    for kind, (hashes, sources) in headers.SOURCES.items():
        if not headers.complete(folders[kind], hashes):
            try:
                headers.fetch(folders[kind], hashes, sources)
            except headers.NoHeaders as error:
                pytest.skip(f"no headers within reach: {error}")
    return [option for folder in folders.values() for option in ("-isystem", str(folder))]


def test_the_cpp_of_the_documents_compiles(includes: list[str], tmp_path: Path) -> None:
    (block,) = cpp_blocks(ROOT / "docs" / "embedding.md")
    (tmp_path / "snippet.cpp").write_text(block)
    for source in (tmp_path / "snippet.cpp", EXAMPLE):
        subprocess.run([*STRICT, *includes, "-fsyntax-only", str(source)], check=True)


def value(tensors: dict[str, np.ndarray], name: str, number: int) -> None:
    tensors[name] = np.full(2, number, np.float32)


def tensor_lines(stage: StageEntry) -> Iterable[str]:
    def line(mode: str, tensor: TensorInfo) -> str:
        return " ".join([mode, tensor.name, tensor.dtype, *("-1" if dim == "L" else str(dim) for dim in tensor.dims)])

    yield from (line("input", tensor) for tensor in stage.inputs)
    yield from (line("output", tensor) for tensor in stage.outputs)


def test_the_example_makes_a_step(tmp_path: Path) -> None:
    """Each stage adds up what it is given: another order, layer, weight or activation gives another sum."""
    manifest = make_bundle(tmp_path / "bundle")
    weights: dict[str, np.ndarray] = {}
    inputs: dict[str, np.ndarray] = {"tokens": np.full((LENGTH, 64), 3, np.float32)}
    for stage in manifest.stages:
        (tmp_path / "bundle" / str(stage.engine)).write_text("\n".join(tensor_lines(stage)))
        prefixes = [f"blocks.{layer}." for layer in range(LAYERS)] if stage.name == "block" else [""]
        for name in (prefix + tensor.name for prefix in prefixes for tensor in stage.weights):
            value(weights, name, 1 << len(weights))
    made = {tensor for stage in manifest.stages for tensor in stage.gives}
    for stage in manifest.stages:
        for tensor in stage.activations:
            if tensor.name not in made and tensor.name not in inputs:
                value(inputs, tensor.name, 100 * len(inputs))
    save_file(weights, tmp_path / "weights.safetensors", {"model": "wan-tiny"})
    save_file(inputs, tmp_path / "inputs.safetensors")
    program = tmp_path / "dit_step"
    stand_in = str(ROOT / "tests" / "support" / "stand_in_cpp")
    subprocess.run([*STRICT, "-I", stand_in, str(EXAMPLE), "-o", str(program)], check=True)
    arguments = ["bundle", "weights.safetensors", "inputs.safetensors", str(LAYERS), "tokens.bin"]
    done = subprocess.run([str(program), *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    known = {name: float(array.flat[0]) for name, array in inputs.items()}
    for stage in manifest.stages:
        for layer in range(LAYERS if stage.name == "block" else 1):
            prefix = f"blocks.{layer}." if stage.name == "block" else ""
            taken = [known[tensor.name] for tensor in stage.activations]
            taken += [float(weights[prefix + tensor.name][0]) for tensor in stage.weights]
            known |= dict.fromkeys(stage.gives, 1 + sum(taken))
    tokens = np.fromfile(tmp_path / "tokens.bin", np.float32)
    assert tokens.size == LENGTH * 64
    assert tokens[0] == known["tokens"]
    done = subprocess.run([str(program), "bundle"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr[:6]) == (1, "usage:")
