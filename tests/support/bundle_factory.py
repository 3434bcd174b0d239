"""A small bundle that is right in every respect but the contents of its engines."""

from __future__ import annotations

from pathlib import Path

import msgspec

from exporter.spec import ExportSpec
from plugins.plan import KernelImage, LaunchSpec, Plan, TensorSpec, encode
from runtime.bundle import (
    GpuFacts,
    Manifest,
    ModelFacts,
    Profile,
    SamplerFacts,
    StageEntry,
    TensorInfo,
    file_info,
    write_manifest,
)

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
    tensor = TensorSpec("x", "fp32", [128])
    kernel = KernelImage("copy_kernel", b"\x7fELF", 4, 0, 0, 0, 32, 0)
    launch = LaunchSpec(0, [1, 1, 1], [["tensor", "x"]])
    return encode(Plan("Copy", sm, {}, {}, [tensor], [tensor], [], [kernel], [launch]))


def make_bundle(folder: Path, *, plan: bytes | None = None, model: ModelFacts = TINY) -> Manifest:
    """Write the files and the manifest of a bundle for rtx5090, without weights; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"block.plan": plan_bytes() if plan is None else plan}
    for stage in ("embed", "block", "head"):
        contents |= {f"{stage}.onnx": stage.encode() * 10, f"{stage}.engine": stage.encode() * 20}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    stages = tuple(
        StageEntry(
            component="dit",
            name=stage,
            engine=f"{stage}.engine",
            onnx=f"{stage}.onnx",
            inputs=(TensorInfo(name="x", dtype="bf16", dims=(1, "L", 256)),),
            outputs=(TensorInfo(name="y", dtype="bf16", dims=(1, "L", 256)),),
            profile=Profile(min=1, opt=200, max=4096),
            activation_bytes=123_456_789,
        )
        for stage in ("embed", "block", "head")
    )
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


def make_bundle_of(spec: ExportSpec) -> Path:
    """The bundle above, as if exported with the choices of ``spec``; its model is wan-tiny whatever the spec says."""
    made = make_bundle(spec.bundle_dir)
    stages = tuple(msgspec.structs.replace(s, engine=None if spec.onnx_only else s.engine) for s in made.stages)
    named = {"text": "text_norm", "vae": "decode_next"}
    shared = {name: getattr(stages[0], name) for name in ("engine", "onnx", "inputs", "outputs", "profile")}
    media = tuple(StageEntry(component=c, name=named[c], **shared) for c in spec.components if c in named)  # type: ignore[arg-type]
    sampler = msgspec.structs.replace(
        made.sampler, attention=spec.attention, topk_milli=spec.topk_milli, linear=spec.linear
    )
    model = msgspec.structs.replace(made.model, max_size=spec.model.max_size)
    changed = {"stages": (*stages, *media), "model": model, "sampler": sampler, "text_linear": spec.text_linear}
    manifest = msgspec.structs.replace(made, **changed)
    write_manifest(spec.bundle_dir, manifest)
    return spec.bundle_dir
