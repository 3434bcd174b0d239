"""What can be done on this machine: each thing a user may want, whether it works here, and what mends it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from exporter.doctor.gpu import Gpu, Gpus
from exporter.doctor.packages import Extra
from exporter.gpus import GPUS

#: The first driver of a CUDA release, by its major version: what a library built for it asks for.
_DRIVERS: Mapping[int, str] = {12: "525", 13: "580"}


@dataclass(frozen=True)
class Ability:
    """``why``: what it rests on, or what is missing; ``remedy``: the command or step that mends it, None where none."""

    what: str
    works: bool
    why: str
    remedy: str | None = None


def abilities(extras: Mapping[str, Extra], gpus: Gpus) -> list[Ability]:
    """In the order in which one meets them: export, run, video."""
    return [
        _export_rtx(extras),
        _export_here(extras, gpus),
        *(_run(extras, gpus) if gpus.devices else [_no_gpu(gpus)]),
        _torch_backend(extras, gpus),
        _of_extra("prompts, images and mp4 files", extras["video"]),
        _of_extra("compare a bundle with its checkpoint", extras["export"]),
    ]


def _of_extra(what: str, extra: Extra) -> Ability:
    if extra.missing:
        return Ability(what, False, f"not installed: {', '.join(extra.missing)}", extra.remedy)
    return Ability(what, True, f"the {extra.name} extra is complete")


def _export_rtx(extras: Mapping[str, Extra]) -> Ability:
    what = "export engines for RTX parts"
    missing = (*extras[""].missing, *extras["export"].missing)
    if missing:
        return Ability(what, False, f"not installed: {', '.join(missing)}", extras["export"].remedy)
    return Ability(what, True, f"tensorrt-rtx {extras[''].found.get('tensorrt-rtx', '')}; no GPU is needed")


def _export_here(extras: Mapping[str, Extra], gpus: Gpus) -> Ability:
    """The full TensorRT builds for the GPU that it runs on."""
    full = [gpu for gpu in GPUS.values() if gpu.flavour == "tensorrt"]
    what = f"export engines for {', '.join(gpu.name for gpu in full)}"
    present = next((device for device in gpus.devices if device.sm in {gpu.sm for gpu in full}), None)
    if present is None:
        return Ability(what, False, "they are built on that GPU alone", "--onnx-only makes all but the engines here")
    if extras["tensorrt"].missing:
        return Ability(what, False, f"a {present.name}, and no tensorrt package", extras["tensorrt"].remedy)
    return Ability(what, True, f"a {present.name}, tensorrt {extras['tensorrt'].found['tensorrt']}")


def _no_gpu(gpus: Gpus) -> Ability:
    remedy = "nvidia-smi shows whether the driver works; exports are made without a GPU"
    return Ability("run engines", False, gpus.why_none or "there is no GPU", remedy)


def _run(extras: Mapping[str, Extra], gpus: Gpus) -> Iterator[Ability]:
    for device in gpus.devices:
        yield _run_on(device, extras, gpus)


def _run_on(device: Gpu, extras: Mapping[str, Extra], gpus: Gpus) -> Ability:
    what = f"run engines on {device.name}"
    if not device.exports:
        return Ability(what, False, f"there is no --gpu for its compute capability (sm_{device.sm})")
    flavour = GPUS[device.exports[0]].flavour
    extra = extras["" if flavour == "tensorrt_rtx" else "tensorrt"]
    package = flavour.replace("_", "-")
    if package not in extra.found:
        return Ability(what, False, f"not installed: {package}", extra.remedy)
    if (old := _too_old(gpus.cuda, extra.found)) is not None:
        return Ability(what, False, *old)
    return Ability(what, True, f"bundles of --gpu {', '.join(device.exports)}; {package} {extra.found[package]}")


def _too_old(cuda: str | None, packages: Mapping[str, str]) -> tuple[str, str] | None:
    """Why, and the remedy, where the driver is older than the CUDA bindings ask for."""
    wanted = int(packages.get("cuda-bindings", "0").partition(".")[0])
    if cuda is None or wanted not in _DRIVERS or int(cuda.partition(".")[0]) >= wanted:
        return None
    return f"the driver runs CUDA {cuda}, the libraries want {wanted}", f"a driver {_DRIVERS[wanted]} or newer"


def _torch_backend(extras: Mapping[str, Extra], gpus: Gpus) -> Ability:
    what = "generate --backend torch"
    version = extras["export"].found.get("torch")
    if version is None:
        return Ability(what, False, "not installed: torch", extras["export"].remedy)
    if not gpus.devices:
        return Ability(what, True, f"torch {version}, on the CPU: for wan-tiny, much too slow for the others")
    if re.search(r"\+cpu$", version):
        return Ability(what, False, f"torch {version} is the CPU build, which sees no GPU", "pip install torch")
    return Ability(what, True, f"torch {version}, on the GPU")
