"""What a build's process imports: TensorRT orders tables by addresses, which follow from all that was loaded before."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

CODE = """
import sys
import exporter.builder.child, exporter.builder.flavour, exporter.gpus
import plugins.registry, plugins.tensorrt_plugin, runtime.dims
print([name for name in ("numpy", "torch", "triton", "onnx", "typer", "rich", "cuda") if name in sys.modules])
"""


def test_a_build_loads_little() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
