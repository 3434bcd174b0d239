"""``turbotrt doctor``: what it says of this machine, and of others that are described to it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.doctor import packages
from exporter.doctor.abilities import Ability, abilities
from exporter.doctor.caches import caches
from exporter.doctor.gpu import Gpu, Gpus, exports_for
from exporter.doctor.packages import EXTRAS, Extra, extras
from exporter.gpus import GPUS
from plugins.errors import UserError

INSTALLED = {
    "": Extra("", "", {"cuda-bindings": "13.5.0", "tensorrt-rtx": "1.7.1"}, ()),
    "export": Extra("export", "", {"torch": "2.13.0"}, ()),
    "video": Extra("video", "", {"av": "18.1.0"}, ()),
    "tensorrt": Extra("tensorrt", "", {}, ("tensorrt",)),
}
RTX = Gpus(
    (Gpu("NVIDIA GeForce RTX 5090", 120, 32 << 30, exports_for("NVIDIA GeForce RTX 5090", 120)),), "580.1", "13.0", None
)
NONE = Gpus((), None, None, "the CUDA driver sees no GPU")


def found(gpus: Gpus, **changed: Extra) -> dict[str, Ability]:
    return {ability.what: ability for ability in abilities(INSTALLED | changed, gpus)}


def test_this_machine_by_the_command() -> None:
    ran = CliRunner().invoke(app, ["doctor", "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert [extra["name"] for extra in told["extras"]] == list(EXTRAS)
    assert "numpy" in told["extras"][0]["found"]
    assert told["cores"] > 0
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    assert "export engines for RTX parts" in shown
    assert all(cache["folder"] in shown for cache in told["caches"])


@pytest.mark.parametrize(
    ("name", "sm", "first"),
    [
        ("NVIDIA GeForce RTX 5090", 120, "rtx5090"),
        ("NVIDIA GeForce RTX 4080 SUPER", 89, "rtx4080"),
        ("NVIDIA H100 80GB HBM3", 90, "h100"),
        ("NVIDIA H200", 90, "h200"),
        ("NVIDIA L40S", 89, "l40s"),
    ],
)
def test_a_device_is_given_its_exports(name: str, sm: int, first: str) -> None:
    named = exports_for(name, sm)
    assert named[0] == first
    assert set(named) == {gpu.name for gpu in GPUS.values() if gpu.sm == sm}


def test_an_rtx_part_runs_engines() -> None:
    told = found(RTX)
    run = told["run engines on NVIDIA GeForce RTX 5090"]
    assert run.works
    assert "rtx5090" in run.why
    assert told["generate --backend torch"].why == "torch 2.13.0, on the GPU"


def test_an_old_driver_is_named_with_the_one_it_takes() -> None:
    run = found(replace(RTX, cuda="12.4"))["run engines on NVIDIA GeForce RTX 5090"]
    assert not run.works
    assert (run.why, run.remedy) == ("the driver runs CUDA 12.4, the libraries want 13", "a driver 580 or newer")


def test_a_data_centre_gpu_needs_the_full_tensorrt() -> None:
    h100 = Gpus((Gpu("NVIDIA H100 80GB HBM3", 90, 80 << 30, exports_for("NVIDIA H100", 90)),), "580.1", "13.0", None)
    told = found(h100)
    run = told["run engines on NVIDIA H100 80GB HBM3"]
    assert (run.works, run.why, run.remedy) == (False, "not installed: tensorrt", "pip install 'turbotrt[tensorrt]'")
    told = found(h100, tensorrt=Extra("tensorrt", "", {"tensorrt": "10.14"}, ()))
    assert told["run engines on NVIDIA H100 80GB HBM3"].works
    assert next(ability for what, ability in told.items() if what.startswith("export engines for a100")).works


def test_a_gpu_that_nothing_is_exported_for() -> None:
    told = found(Gpus((Gpu("Tesla T4", 75, 16 << 30, ()),), "580.1", "13.0", None))
    assert told["run engines on Tesla T4"].why == "there is no --gpu for its compute capability (sm_75)"


def test_a_machine_without_a_gpu_and_extras() -> None:
    bare = {
        "export": Extra("export", "", {}, ("torch", "onnx")),
        "video": Extra("video", "", {}, ("av",)),
    }
    told = found(NONE, **bare)
    assert told["run engines"].why == "the CUDA driver sees no GPU"
    assert told["export engines for RTX parts"].remedy == "pip install 'turbotrt[export]'"
    assert told["prompts, images and mp4 files"].remedy == "pip install 'turbotrt[video]'"
    assert not any(ability.works for ability in told.values())


def test_the_cpu_build_of_torch_sees_no_gpu() -> None:
    cpu = Extra("export", "", {"torch": "2.13.0+cpu"}, ())
    assert not found(RTX, export=cpu)["generate --backend torch"].works
    assert found(NONE, export=cpu)["generate --backend torch"].works


def test_without_an_installation_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> list[str]:
        raise PackageNotFoundError

    monkeypatch.setattr(packages, "requires", unknown)
    with pytest.raises(UserError, match="not installed here, so what it needs is not known"):
        extras()


def test_a_cache_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (tmp_path / "kernel").write_bytes(b"1" * 10_000)
    (tmp_path / "loop").symlink_to(tmp_path)
    triton = next(cache for cache in caches() if cache.variable == "TRITON_CACHE_DIR")
    assert (triton.folder, triton.problem) == (str(tmp_path), None)
    assert 10_000 <= triton.bytes < 100_000
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/none")
    triton = next(cache for cache in caches() if cache.variable == "TRITON_CACHE_DIR")
    assert triton.problem is not None
