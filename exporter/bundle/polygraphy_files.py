"""The files of a bundle for Polygraphy: the script that writes inputs, and the lines to type, in README.txt."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from plugins.sms import capability
from runtime.bundle import GpuFacts, Manifest, StageEntry, load_manifest
from runtime.dims import shape_of, split_dim

SCRIPTS_NAME = "polygraphy_scripts.py"
README_NAME = "README.txt"

_SCRIPT_HEAD = '''\
"""Each stage's inputs for Polygraphy: see README.txt. Written by turbotrt export."""

import sys
from pathlib import Path

from exporter.compare import scripts

BUNDLE = Path(__file__).resolve().parent
'''
_SCRIPT_STAGE = """

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
    """polygraphy_scripts.py: ``<stage>_inputs`` for every stage."""
    stages = "".join(_SCRIPT_STAGE.format(name=name) for name in stage_names(manifest))
    return _SCRIPT_HEAD + stages + _SCRIPT_END


def setup_lines(flavour: str) -> list[str]:
    """Shell lines that a shell needs once, before Polygraphy starts."""
    lines = ["export WORK=$(mktemp -d)", "export PLUGINS=$(python -m plugins.library)"]
    if flavour != "tensorrt_rtx":
        return lines
    folder = "import tensorrt_rtx_libs as libs; print(list(libs.__path__)[0])"
    return [
        *lines,
        # RTX's parser opens libtensorrt_rtx.so by that name when it meets a plugin, and its wheel has only .so.1.
        f"ln -sf \"$(python -c '{folder}')/libtensorrt_rtx.so.1\" $WORK/libtensorrt_rtx.so",
        # A path that ends with a colon would have libraries looked for in the current folder.
        "export LD_LIBRARY_PATH=$WORK${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} POLYGRAPHY_USE_TENSORRT_RTX=1",
    ]


def build_lines(manifest: Manifest, stages: Sequence[str]) -> list[str]:
    """Lines that build each stage's engine as export does; for RTX parts they run on any machine."""
    return [_build_line(manifest.gpu, _entry(manifest, stage)) for stage in stages]


def _entry(manifest: Manifest, name: str) -> StageEntry:
    return next(stage for stage in manifest.stages if stage.name == name)


def _build_line(gpu: GpuFacts, stage: StageEntry) -> str:
    target = f" --compute-capabilities {capability(gpu.sm)}" if gpu.flavour == "tensorrt_rtx" else ""
    profile = {"min": stage.profile.min, "opt": stage.profile.opt, "max": stage.profile.max}
    shapes = "".join(f" --trt-{name}-shapes {_shapes(stage, size)}" for name, size in profile.items())
    return (
        f"polygraphy convert {stage.onnx} --plugins $PLUGINS --strongly-typed{target}{shapes} "
        f"-o $WORK/{stage.name}.engine"
    )


def _shapes(stage: StageEntry, size: int) -> str:
    """The inputs that have symbols, each of them of this size; quoted, since brackets are patterns to a shell."""
    symbols = {t: {split_dim(dim)[1] for dim in t.dims if isinstance(dim, str)} for t in stage.activations}
    found = {t.name: shape_of(t.dims, dict.fromkeys(names, size)) for t, names in symbols.items() if names}
    return " ".join(f"'{name}:[{','.join(map(str, shape))}]'" for name, shape in found.items())


def input_lines(stages: Sequence[str]) -> list[str]:
    """Lines that write each stage's inputs for ``--load-inputs``; the block's hold one layer's weights."""
    return [f"python {SCRIPTS_NAME} {stage} $WORK/{stage}_inputs.json" for stage in stages]


def run_lines(manifest: Manifest, stages: Sequence[str]) -> list[str]:
    """Lines that run each stage's engine on the bundle's GPU, keep its outputs, and look for NaN."""
    return [
        f"polygraphy run {_engine(manifest, stage)} --load-inputs $WORK/{stage}_inputs.json "
        f"--save-outputs $WORK/{stage}_outputs.json --validate"
        for stage in stages
    ]


def _engine(manifest: Manifest, stage: str) -> str:
    """The bundle's engine, where it holds one; else the one that was just built."""
    return f"{_entry(manifest, stage).engine or f'$WORK/{stage}.engine'} --model-type engine --trt --plugins $PLUGINS"


def look_lines() -> list[str]:
    """A line that shows inputs. (``inspect model`` takes a plan's bytes for text, and knows no TensorRT for RTX.)"""
    return ["polygraphy inspect data $WORK/block_inputs.json"]


def recorded_lines(bundle: Path, results: Path) -> list[str]:
    """Lines that run the block's engine on what a comparison recorded, against what its runners gave."""
    folder, manifest = shlex.quote(str(results.resolve())), load_manifest(bundle)
    return [
        f"cd {shlex.quote(str(bundle))}",
        *setup_lines(manifest.gpu.flavour),
        f"polygraphy run {_engine(manifest, 'block')} "
        f"--load-inputs {folder}/block_inputs.json --load-outputs {folder}/block_outputs.json "
        "--compare snr",  # its cosine_similarity sums bf16 in bf16: of equal tensors too it makes 0.996 and fails
    ]


def closing_lines(folder: Path) -> list[str]:
    """What is printed after an export: the lines that build and run the block's engine by Polygraphy."""
    manifest = load_manifest(folder)
    block = [*input_lines(["block"]), *build_lines(manifest, ["block"]), *run_lines(manifest, ["block"])]
    shown = [f"cd {shlex.quote(str(folder))}", *setup_lines(manifest.gpu.flavour), *block]
    heading = f"With Polygraphy (the last line needs the GPU; more in {folder / README_NAME}):"
    return [heading, *(f"  {line}" for line in shown)]


def readme_text(manifest: Manifest) -> str:
    """README.txt: what the bundle is, and every line, by where it runs."""
    parts = [
        f"{manifest.model.name} for {manifest.gpu.name} (sm_{manifest.gpu.sm}), made by turbotrt export.",
        "Check it with `turbotrt inspect .`, compare it with its checkpoint with `turbotrt compare --bundle .`",
        "",
        "With Polygraphy, in this folder and in an environment with turbotrt[export] and its plugin library, which",
        "turbotrt's wheel has and `make native` builds. trtexec and tensorrt_rtx load these engines with that library",
        "as --dynamicPlugins. All hosts: docs/embedding.md in turbotrt's sources.",
        "",
    ]
    where = "any machine" if manifest.gpu.flavour == "tensorrt_rtx" else f"a machine with a {manifest.gpu.name}"
    names = stage_names(manifest)
    sections = {
        "Once in each shell:": setup_lines(manifest.gpu.flavour),
        "Inputs, made up, with the bundle's weights (any machine):": input_lines(names),
        "Look at them (any machine):": look_lines(),
        f"Build the engines ({where}):": build_lines(manifest, names),
        f"Run them (a machine with a {manifest.gpu.name}):": run_lines(manifest, names),
    }
    for heading, lines in sections.items():
        if lines:
            parts += [heading, *(f"  {line}" for line in lines), ""]
    return "\n".join(parts)
