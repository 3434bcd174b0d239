"""Checks of a bundle before any of it is loaded: the reason against it, with the way to mend it, or None."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from plugins.errors import UserError
from plugins.plan import FORMAT_VERSION, Plan, decode
from plugins.tensorrt_plugin import PLUGIN_VERSION
from runtime.bundle import USUAL_COMPONENTS, Manifest, MediaComponent
from runtime.input_files import read_input

MAX_PLAN_BYTES = 64 << 20  # kernels of an op, of some hundred kilobytes each
#: Component → the option of export that gives its weights.
WEIGHT_OPTIONS: Mapping[MediaComponent, str] = {"text": "--text-encoder", "vae": "--vae", "tiny": "--tiny-vae"}
PLUGIN_TOOL = "turbotrt-plugin"  # the manifest's name, under tools, for the version of our plugins


def rebuild_command(
    manifest: Manifest, folder: Path | None = None, *, checkpoint: bool = False, engines: bool = False
) -> str:
    """The export that makes this bundle again, in the folder where it is, with every option that made it.

    ``checkpoint``: with the DiT's weights, which a one-file engine cannot be made without; PATH_OR_HF_ID is the
    caller's to replace. ``engines``: with engines even where this bundle has none.
    """
    sampler = manifest.sampler
    one_file = any(stage.name == "one-file" for stage in manifest.stages)
    words = ["turbotrt", "export", "--model", manifest.model.name, "--gpu", manifest.gpu.name]
    words += ["--checkpoint", "PATH_OR_HF_ID"] if checkpoint or one_file else []
    words += ["--out", str(folder.parent)] if folder is not None and folder.parent != Path("engines") else []
    words += ["--attention", sampler.attention, "--linear", sampler.linear]
    words += ["--topk", f"{sampler.topk_milli / 1000:g}"] if not sampler.dense else []
    listed = tuple(component for component in manifest.components if component != "tiny")
    words += ["--components", ",".join(listed)] if listed != USUAL_COMPONENTS else []
    words += ["--vae-decoder", "tiny"] if "tiny" in manifest.components else []
    words += ["--max-size", "x".join(map(str, largest))] if (largest := manifest.model.max_size) is not None else []
    words += ["--text-linear", manifest.text_linear] if manifest.text_linear != "bf16" else []
    words += ["--onnx-only"] if not engines and any(stage.engine is None for stage in manifest.stages) else []
    words += ["--one-file"] if one_file else []
    words += ["--embed-plugins"] if manifest.embedded_library is not None else []
    return shlex.join(words)


def export_with(component: MediaComponent) -> str:
    """What to do where a bundle is without a component's weights; PATH_OR_HF_ID is the caller's to replace."""
    decoder = "--vae-decoder tiny " if component == "tiny" else ""
    return f"export again with {decoder}{WEIGHT_OPTIONS[component]} PATH_OR_HF_ID"


def pack_command(folder: Path, manifest: Manifest) -> str:
    """The command that packs the DiT's weights into this bundle; PATH_OR_HF_ID is the caller's to replace."""
    words = ["--model", manifest.model.name, "--out", str(folder / "weights.safetensors")]
    return f"turbotrt pack --checkpoint PATH_OR_HF_ID {shlex.join(words)}"


def mending(folder: Path, manifest: Manifest, name: str) -> str:
    """The command that makes this file again: an export without a checkpoint would not bring weights back."""
    if name in manifest.weights.values():
        return pack_command(folder, manifest)
    needed = [f" {WEIGHT_OPTIONS[part]} PATH_OR_HF_ID" for part, file in manifest.media_weights.items() if file == name]
    return rebuild_command(manifest, folder) + "".join(needed)


def mismatch(problem: str, built_for: str, found: str, remedy: str) -> str:
    """The reason that says what was built for what."""
    return str(UserError(problem, expected=built_for, got=found, remedy=remedy))


def check_weights(folder: Path, manifest: Manifest, experts: Sequence[str]) -> str | None:
    """Why the bundle cannot run these experts, or None: it must have their weights."""
    missing = [expert for expert in experts if expert not in manifest.weights]
    if not missing:
        return None
    return mismatch(
        "The bundle has no weights yet.",
        f"weights of {', '.join(experts)}",
        ", ".join(manifest.weights) or "none",
        pack_command(folder, manifest),
    )


def check_engines(folder: Path, manifest: Manifest, versions: dict[str, str]) -> str | None:
    """Why the engines cannot be loaded, or None: they must be there, and built by the TensorRT that is here.

    ``versions``: package → version.
    """
    if any(stage.engine is None for stage in manifest.stages):
        again = rebuild_command(manifest, folder, engines=True)
        return mismatch(
            "The bundle has no engines: it was exported with --onnx-only.",
            "engines of all stages",
            "none",
            f"{again}, or run it with --backend torch",
        )
    package = manifest.gpu.flavour.replace("_", "-")
    built, here = manifest.tools.get(package, "unknown"), versions.get(package)
    if here is None:
        extra = "pip install 'turbotrt[tensorrt]'" if package == "tensorrt" else f"pip install {package}=={built}"
        return mismatch(f"The engines need {package}, which is not installed.", f"{package} {built}", "none", extra)
    if built != here:
        return mismatch(
            "The engines were built by another TensorRT.",
            f"{package} {built}",
            f"{package} {here}",
            f"{rebuild_command(manifest, folder)}, or pip install {package}=={built}",
        )
    return None


def check_gpu(manifest: Manifest, capability: int | None) -> str | None:
    """Why the GPU here cannot run the engines, or None; ``capability`` is 10·major + minor, None without a GPU."""
    if capability == manifest.gpu.sm:
        return None
    built = f"{manifest.gpu.name}, compute capability {_dotted(manifest.gpu.sm)}"
    found = "no CUDA GPU" if capability is None else f"compute capability {_dotted(capability)}"
    remedy = "export for the GPU that is here: turbotrt list shows the names for --gpu"
    return mismatch("The engines were built for another GPU.", built, found, remedy)


def check_plugins(folder: Path, manifest: Manifest) -> str | None:
    """Why this turbotrt cannot run the plugins in the engines, or None: they must be of its version."""
    built = manifest.tools.get(PLUGIN_TOOL, "unknown")
    if built != PLUGIN_VERSION:
        return mismatch(
            "The engines hold plugins of another version.",
            f"plugins {built}",
            f"plugins {PLUGIN_VERSION}",
            rebuild_command(manifest, folder),
        )
    for name in sorted(set(manifest.plans.values())):
        try:
            read_plan(folder / name)
        except ValueError as error:
            return mismatch(
                f"{name} is not a launch plan that this turbotrt runs.",
                f"format {FORMAT_VERSION}",
                str(error),
                rebuild_command(manifest, folder),
            )
    return None


def read_plan(path: Path) -> tuple[Plan, bytes]:
    """A launch plan's file, decoded and as it is. Raises ValueError saying what is wrong with it."""
    if not path.is_file():
        raise ValueError("no such file")
    if (size := path.stat().st_size) > MAX_PLAN_BYTES:
        raise ValueError(f"{size:,} bytes")
    data = read_input(path, MAX_PLAN_BYTES, "a launch plan")
    return decode(data), data


def check_size(folder: Path, manifest: Manifest, name: str) -> str | None:
    """Why a file cannot be the manifest's by its size alone, or None."""
    path, info = folder / name, manifest.files[name]
    size = path.stat().st_size if path.is_file() else None
    if size == info.bytes:
        return None
    return mismatch(
        f"{name} is not the file of the manifest.",
        f"{info.bytes} bytes",
        "missing" if size is None else f"{size} bytes",
        mending(folder, manifest, name),
    )


def _dotted(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"
