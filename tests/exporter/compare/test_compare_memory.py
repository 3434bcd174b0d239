"""turbotrt compare's memory: blocks pass through one by one, so that it does not grow with their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("polygraphy")
pytest.importorskip("matplotlib")

WIDTH, FFN = 768, 3072
LAYERS = (1, 6)
BLOCK_BYTES = 4 * (8 * WIDTH**2 + 2 * WIDTH * FFN)  # fp32: 38 MB
# For each number of layers a comparison of fp32 and quantized from a checkpoint of zeros, which takes no disk, in a
# process of its own, forked once all is imported; prints its peak RSS in bytes.
PROGRAM = """
import os, resource, sys
from dataclasses import replace
from pathlib import Path
from tests.support.checkpoints import save_sparse
from tests.support.random_bundle import facts
from exporter import models
from exporter.checkpoint.table import checkpoint_tensors
from exporter.compare import run
from exporter.compare.spec import CompareSpec
from tests.support.progress import SilentProgress
from runtime.bundle import GpuFacts, Manifest, file_info, write_manifest

run.write_report = lambda *_: None  # charts, of which there is one set whatever the layers

def measure(folder, width, ffn, layers):
    folder.mkdir()
    model = replace(models.MODELS["wan-tiny"], name="layers", dim=width, ffn_dim=ffn, layers=layers)
    models.MODELS = {**models.MODELS, model.name: model}
    shapes = ((name, want.shape) for name, want in checkpoint_tensors(model).items())
    checkpoint = save_sparse(folder / "checkpoint.safetensors", shapes)
    named = facts(model)
    for stage in named["stages"]:
        (folder / stage.onnx).write_bytes(b"not traced")
    files = {stage.onnx: file_info(folder / stage.onnx) for stage in named["stages"]}
    gpu = GpuFacts(name="rtx5090", sm=120, flavour="tensorrt_rtx")
    manifest = Manifest(**named, gpu=gpu, tools={}, plans={}, files=files, weights={}, vram_estimate_bytes=0)
    write_manifest(folder, manifest)
    runners = ("fp32", "quantized")
    spec = CompareSpec(folder, str(checkpoint), runners, steps=1, size=(64, 32), frames=13, out=folder / "out")
    found = run.compare(spec, SilentProgress())
    assert found.passed and {row.layer for row in found.rows if row.level == "op"} == set(range(layers))
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)

folder, width, ffn, *counts = Path(sys.argv[1]), *map(int, sys.argv[2:])
for layers in counts:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        measure(folder / str(layers), width, ffn, layers)
        sys.exit()
"""


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, *map(str, (tmp_path, WIDTH, FFN, *LAYERS))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = map(int, done.stdout.split())
    assert many - few < 3 * BLOCK_BYTES, f"{few / 1e6:.0f} and {many / 1e6:.0f} MB with {LAYERS} layers"
