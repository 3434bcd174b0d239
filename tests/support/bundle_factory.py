"""A small bundle that is right in every respect but the contents of its engines."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec

from exporter.spec import ExportSpec
from plugins.plan import KernelImage, LaunchSpec, Plan, TensorSpec, encode
from runtime.bundle import (
    OUTPUT_SUFFIX,
    Component,
    GpuFacts,
    Manifest,
    ModelFacts,
    Profile,
    SamplerFacts,
    StageEntry,
    StageName,
    TensorInfo,
    file_info,
    write_manifest,
)
from runtime.declared import COMPONENT_STAGES, declared

TINY = ModelFacts(
    name="wan-tiny",
    dim=256,
    layers=2,
    heads=2,
    ffn_dim=512,
    in_channels=16,
    text_length=512,
    freq_dim=256,
    size=(128, 80),
    frames=17,
    fps=16,
    max_tokens=4096,
    experts=("model",),
)


def plan_bytes(sm: int = 120) -> bytes:
    """A plan of one kernel that copies x to y, with no machine code worth the name."""
    x, y = (TensorSpec(name, "fp32", [128]) for name in "xy")
    kernel = KernelImage("copy_kernel", b"\x7fELF", 4, 0, 0, 0, 32, 0)
    launch = LaunchSpec(0, [1, 1, 1], [["tensor", "x"], ["tensor", "y"]])
    return encode(Plan("Copy", sm, {}, {}, [x], [y], [], [kernel], [launch]))


def make_bundle(folder: Path, *, plan: bytes | None = None, model: ModelFacts = TINY) -> Manifest:
    """Write the files and the manifest of a bundle for rtx5090, without weights; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"block.plan": plan_bytes() if plan is None else plan}
    for stage in ("embed", "block", "head"):
        contents |= {f"{stage}.onnx": stage.encode() * 10, f"{stage}.engine": stage.encode() * 20}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    stages = tuple(_stage("dit", stage, stage, model) for stage in COMPONENT_STAGES["dit"])
    manifest = Manifest(
        model=model,
        sampler=SamplerFacts(
            steps=4, sigma_max=80.0, boundary=None, topk_milli=100, attention="sagesla", linear="int8"
        ),
        gpu=GpuFacts(name="rtx5090", sm=120, flavour="tensorrt_rtx"),
        tools={"triton": "3.7.1", "torch": "2.13.0"},
        stages=stages,
        plans={"/blocks/copy": "block.plan"},
        files={name: file_info(folder / name) for name in contents},
        weights={},
        vram_estimate_bytes=5_800_000,
    )
    write_manifest(folder, manifest)
    return manifest


def _stage(component: Component, name: str, files: str, model: ModelFacts) -> StageEntry:
    """A stage that takes and gives what it must, and one weight; ``files``: the stem of its files' names."""
    inputs, outputs = declared(model, 32)[name]
    taken = [TensorInfo(name=given, dtype=dtype, dims=dims) for given, (dtype, dims) in inputs.items()]
    return StageEntry(
        component=component,
        name=cast(StageName, name),
        engine=f"{files}.engine",
        onnx=f"{files}.onnx",
        inputs=(*taken, TensorInfo(name="scale", dtype="fp32", dims=(model.dim,), weight=True)),
        outputs=tuple(TensorInfo(name=f"{n}{OUTPUT_SUFFIX}", dtype=d, dims=dims) for n, (d, dims) in outputs.items()),
        profile=Profile(min=1, opt=200, max=4096),
        activation_bytes=123_456_789,
    )


def make_bundle_of(spec: ExportSpec) -> Path:
    """The bundle above, as if exported with the choices of ``spec``; its model is wan-tiny whatever the spec says."""
    made = make_bundle(spec.bundle_dir)
    stages = tuple(msgspec.structs.replace(s, engine=None if spec.onnx_only else s.engine) for s in made.stages)
    media = tuple(
        msgspec.structs.replace(_stage(component, stage, "embed", TINY), engine=stages[0].engine)
        for component in spec.components
        for stage in COMPONENT_STAGES[component]
        if component != "dit" and not stage.startswith("encode")
    )
    sampler = msgspec.structs.replace(
        made.sampler, attention=spec.attention, topk_milli=spec.topk_milli, linear=spec.linear
    )
    model = msgspec.structs.replace(made.model, max_size=spec.model.max_size)
    changed = {"stages": (*stages, *media), "model": model, "sampler": sampler, "text_linear": spec.text_linear}
    manifest = msgspec.structs.replace(made, **changed)
    write_manifest(spec.bundle_dir, manifest)
    return spec.bundle_dir
