"""The files of a bundle that are for Polygraphy: the scripts it loads, and the lines to type, in README.txt."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from runtime.bundle import Manifest, load_manifest

SCRIPTS_NAME = "polygraphy_scripts.py"
README_NAME = "README.txt"

_SCRIPT_HEAD = '''\
"""Each stage's network, config and inputs for Polygraphy: see README.txt. Written by turbotrt export."""

import sys
from pathlib import Path

from exporter.compare import scripts

BUNDLE = Path(__file__).resolve().parent
'''
_SCRIPT_STAGE = """

def {name}_network():
    return scripts.network(BUNDLE, "{name}")


def {name}_config(builder, network):
    return scripts.config(BUNDLE, "{name}", builder, network)


def {name}_inputs():
    return scripts.inputs(BUNDLE, "{name}")
"""
_SCRIPT_END = """

if __name__ == "__main__":  # python polygraphy_scripts.py STAGE FILE.json: inputs for --load-inputs
    scripts.save_inputs(BUNDLE, sys.argv[1], Path(sys.argv[2]))
"""


def stage_names(manifest: Manifest) -> list[str]:
    """Every stage, the text encoder's and the VAE's too."""
    return [stage.name for stage in manifest.stages]


def script_text(manifest: Manifest) -> str:
    """polygraphy_scripts.py: ``<stage>_network``, ``<stage>_config`` and ``<stage>_inputs`` for every stage."""
    stages = "".join(_SCRIPT_STAGE.format(name=name) for name in stage_names(manifest))
    return _SCRIPT_HEAD + stages + _SCRIPT_END


def setup_lines(flavour: str) -> list[str]:
    """Shell lines that a shell needs once, before Polygraphy starts."""
    work = "export WORK=$(mktemp -d)"
    if flavour != "tensorrt_rtx":
        return [work]
    folder = "import tensorrt_rtx_libs as libs; print(list(libs.__path__)[0])"
    return [
        # RTX's parser opens libtensorrt_rtx.so by that name when it meets a plugin, and its wheel has only .so.1.
        work,
        f"ln -sf \"$(python -c '{folder}')/libtensorrt_rtx.so.1\" $WORK/libtensorrt_rtx.so",
        # A path that ends with a colon would have libraries looked for in the current folder.
        "export LD_LIBRARY_PATH=$WORK${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} POLYGRAPHY_USE_TENSORRT_RTX=1",
    ]


def _network(stage: str) -> str:
    return f"{SCRIPTS_NAME}:{stage}_network --model-type trt-network-script"


def build_lines(stages: Sequence[str]) -> list[str]:
    """Lines that build each stage's engine; for RTX parts they run on any machine."""
    return [
        f"polygraphy convert {_network(stage)} --trt-config-script {SCRIPTS_NAME}:{stage}_config "
        f"-o $WORK/{stage}.engine"
        for stage in stages
    ]


def input_lines(stages: Sequence[str]) -> list[str]:
    """Lines that write each stage's inputs for ``--load-inputs``; the block's hold one layer's weights."""
    return [f"python {SCRIPTS_NAME} {stage} $WORK/{stage}_inputs.json" for stage in stages]


def run_lines(stages: Sequence[str]) -> list[str]:
    """Lines that build and run each stage on the bundle's GPU, keep its outputs, and look for NaN."""
    return [
        f"polygraphy run {_network(stage)} --trt --trt-config-script {SCRIPTS_NAME}:{stage}_config "
        f"--load-inputs $WORK/{stage}_inputs.json --save-outputs $WORK/{stage}_outputs.json --validate"
        for stage in stages
    ]


def look_lines() -> list[str]:
    """A line that shows inputs. (``inspect model`` takes a plan's bytes for text, and knows no TensorRT for RTX.)"""
    return ["polygraphy inspect data $WORK/block_inputs.json"]


def recorded_lines(bundle: Path, results: Path) -> list[str]:
    """Lines that run the block's engine on what a comparison recorded, against what its runners gave."""
    folder = shlex.quote(str(results.resolve()))
    return [
        f"cd {shlex.quote(str(bundle))}",
        *setup_lines(load_manifest(bundle).gpu.flavour),
        f"polygraphy run {_network('block')} --trt --trt-config-script {SCRIPTS_NAME}:block_config "
        f"--load-inputs {folder}/block_inputs.json --load-outputs {folder}/block_outputs.json "
        "--compare snr",  # its cosine_similarity sums bf16 in bf16: of equal tensors too it makes 0.996 and fails
    ]


def closing_lines(folder: Path, flavour: str) -> list[str]:
    """What is printed after an export: the lines that build and run the block's engine by Polygraphy."""
    block = [line for lines in (input_lines, build_lines, run_lines) for line in lines(["block"])]
    shown = [f"cd {shlex.quote(str(folder))}", *setup_lines(flavour), *block]
    heading = f"With Polygraphy (the last line needs the GPU; more in {folder / README_NAME}):"
    return [heading, *(f"  {line}" for line in shown)]


def readme_text(manifest: Manifest) -> str:
    """README.txt: what the bundle is, and every line, by where it runs."""
    parts = [
        f"{manifest.model.name} for {manifest.gpu.name} (sm_{manifest.gpu.sm}), made by turbotrt export.",
        "Check it with `turbotrt inspect .`, compare it with its checkpoint with `turbotrt compare --bundle .`",
        "",
        "With Polygraphy, in this folder and in an environment with turbotrt[export]. (trtexec cannot load these",
        "engines: their plugins are Python's.)",
        "",
    ]
    where = "any machine" if manifest.gpu.flavour == "tensorrt_rtx" else f"a machine with a {manifest.gpu.name}"
    names = stage_names(manifest)
    sections = {
        "Once in each shell:": setup_lines(manifest.gpu.flavour),
        "Inputs, made up, with the bundle's weights (any machine):": input_lines(names),
        "Look at them (any machine):": look_lines(),
        f"Build the engines ({where}):": build_lines(names),
        f"Build and run (a machine with a {manifest.gpu.name}):": run_lines(names),
    }
    for heading, lines in sections.items():
        if lines:
            parts += [heading, *(f"  {line}" for line in lines), ""]
    return "\n".join(parts)
