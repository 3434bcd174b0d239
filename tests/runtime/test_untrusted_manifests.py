"""Manifests come from anywhere: what does not hold together is told when it is loaded, at once and in words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from exporter.models import MODELS
from exporter.networks.components import component_stages
from exporter.networks.dit.options import BlockOptions
from exporter.torch_backend.backend import TORCH
from exporter.torch_backend.runner import stage_functions
from plugins.errors import UserError
from runtime.bundle import COMPONENTS, encode_manifest, load_manifest, write_manifest
from runtime.declared import declared
from runtime.media.parts.plan import bundle_parts, plan_parts, planned
from tests.support.media_bundle import bare_manifest, media_stages, with_media
from tests.support.random_bundle import facts

Content = dict[str, Any]
IMAGE = replace(MODELS["wan-tiny"], name="wan-tiny-i2v", in_channels=36)
WHOLE: Content = json.loads(encode_manifest(bare_manifest(IMAGE)))


def put(folder: Path, content: object) -> Path:
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def stage_of(content: Content, name: str) -> Content:
    return next(stage for stage in content["stages"] if stage["name"] == name)


def tensor_of(content: Content, stage: str, name: str, /) -> Content:
    entry = stage_of(content, stage)
    return next(tensor for tensor in (*entry["inputs"], *entry["outputs"]) if tensor["name"] == name)


def model(**changes: object) -> Callable[[Content], Any]:
    return lambda content: content["model"].update(changes)


def sampler(**changes: object) -> Callable[[Content], Any]:
    return lambda content: content["sampler"].update(changes)


def tensor(stage: str, name: str, /, **changes: object) -> Callable[[Content], Any]:
    return lambda content: tensor_of(content, stage, name).update(changes)


def stage(name: str, /, **changes: object) -> Callable[[Content], Any]:
    return lambda content: stage_of(content, name).update(changes)


def without(*names: str) -> Callable[[Content], Any]:
    return lambda content: content.update(stages=[s for s in content["stages"] if s["name"] not in names])


def again(name: str, /, **changes: object) -> Callable[[Content], Any]:
    return lambda content: content["stages"].append(stage_of(content, name) | changes)


WRONG: dict[str, tuple[Callable[[Content], Any], str]] = {
    "a million layers": (model(layers=10**6), "layers"),
    "4,001 digits": (lambda m: m.update(model="DIGITS"), "layers|range"),
    "other heads": (model(heads=3), r"model\.dim cannot be 256"),
    "other frequencies": (model(freq_dim=128), r"model\.freq_dim cannot be 128"),
    "other text": (model(text_length=77), r"model\.text_length cannot be 77"),
    "20 channels": (model(in_channels=20), r"model\.in_channels cannot be 20"),
    "no patches": (model(size=[130, 80]), r"model\.size cannot be"),
    "a size of millions": (model(size=[1 << 20, 16]), "size"),
    "four frames": (model(frames=4), r"model\.frames cannot be 4"),
    "a million frames a second": (model(fps=10**6), "fps"),
    "no experts": (model(experts=[]), "experts"),
    "three experts": (model(experts=["a", "b", "c"]), "experts"),
    "one expert twice": (model(experts=["a", "a"]), r"boundary|model\.experts"),
    "two experts without a boundary": (model(experts=["a", "b"]), "boundary None for the experts a, b"),
    "an escape in a name": (model(name="\x1b[31mred"), r"the text '\\x1b\[31mred'"),
    "a name of a megabyte": (model(name="x" * 10**6), "the text 'xxx"),
    "an escape for a field": (model(**{"\x1b[31m": 1}), "unknown field"),
    "nine steps": (sampler(steps=9), "steps"),
    "an infinite sigma": (sampler(sigma_max=1e300), "sigma_max"),
    "sigma below zero": (sampler(sigma_max=-1.0), "sigma_max"),
    "a boundary for one expert": (sampler(boundary=0.5), "boundary 0.5 for the experts model"),
    "a boundary of two": (sampler(boundary=2.0), "boundary"),
    "an SM of a billion": (lambda m: m["gpu"].update(sm=10**9), "sm"),
    "no embed": (without("embed"), "dit without its stage embed"),
    "no stages": (lambda m: m.update(stages=[]), "dit without its stage embed"),
    "half a text encoder": (without("text_norm"), "text without its stage text_norm"),
    "half a decoder": (without("decode_latent"), "vae without its stage decode_latent"),
    "half a tiny decoder": (without("tiny_first"), "tiny without its stage tiny_first"),
    "other frames of tiny": (
        tensor("tiny_next", "chunk_out", dims=[5, "8*H", "8*W", 3]),
        "tiny_next gives",
    ),
    "a memory that is not given": (lambda m: stage_of(m, "tiny_next")["outputs"].pop(), "other caches than it gives"),
    "no encoder for an image": (without("encode_first", "encode_next", "encode_latent"), "vae without its stage enc"),
    "a stage twice": (again("head"), "the stage head twice"),
    "a stage of nobody's component": (again("text_norm", component="vae"), "text_norm twice"),
    "a stage elsewhere": (stage("text_norm", component="vae"), "text_norm under the component vae"),
    "an expert's block": (stage("block", expert="model"), "the stage block of the expert model"),
    "another's one-file engine": (again("head", name="one-file", expert="other"), "one-file of the expert other"),
    "one-file of nobody": (again("head", name="one-file"), "one-file of the expert None"),
    "an unknown dtype": (tensor("block", "modulation", dtype="bf17"), "block's tensor 'modulation': 'bf17'"),
    "another dtype": (tensor("block", "x", dtype="fp32"), "block takes 'x' as"),
    "another width": (tensor("head", "x", dims=["L", 128]), "head takes 'x' as"),
    "a dim of nothing": (tensor("head", "x", dims=["M", 256]), r"head's tensor 'x': 'bf16' \('M', 256\)"),
    "a dim of another component": (tensor("head", "x", dims=["8*H", 256]), "head's tensor 'x'"),
    "a dim that is a sum": (tensor("head", "x", dims=["L+1", 256]), "head's tensor 'x'"),
    "a weight that grows": (tensor("block", "modulation", dims=["L", 256]), "block's tensor 'modulation'"),
    "a dim of zero": (tensor("block", "modulation", dims=[0, 256]), "dims"),
    "a dim of 2**63": (tensor("block", "modulation", dims=[2**63, 256]), "dims"),
    "nine dims": (tensor("block", "modulation", dims=[1] * 9), "dims"),
    "terabytes of weights": (tensor("block", "modulation", dims=[2**23, 2**23]), "bytes of weights in the stage block"),
    "an input that is a weight": (tensor("head", "e", weight=True), "head takes 'e' as None"),
    "a weight that is an input": (tensor("head", "head.head.bias", weight=False), "head takes 'head.head.bias' as"),
    "another name": (tensor("embed", "time_features", name="t"), "embed takes 't'|'time_features'"),
    "two of one name": (tensor("head", "head.head.bias", name="e"), "two tensors of one name in the stage head"),
    "two outputs of one name": (tensor("head", "v_out", name="tokens"), "two outputs of one name in the stage head"),
    "no v": (lambda m: stage_of(m, "head")["outputs"].pop(), "head gives 'v' as None"),
    "other frames of a chunk": (tensor("decode_next", "chunk_out", dims=[5, "8*H", "8*W", 3]), "decode_next gives"),
    "another width of features": (tensor("decode_first", "chunk", dims=[1, 9, 1, "H", "W"]), "decode_first takes"),
    "a cache that is not given": (lambda m: stage_of(m, "decode_next")["outputs"].pop(), "other caches than it gives"),
    "a profile of billions": (stage("block", profile={"min": 1, "opt": 1, "max": 2**40}), "profile"),
    "5,000 tensors": (lambda m: stage_of(m, "block").update(inputs=stage_of(m, "block")["inputs"] * 200), "inputs"),
    "an exabyte of activations": (stage("block", activation_bytes=2**60), "activation_bytes"),
}


def test_the_manifest_of_these_tests_is_sound(tmp_path: Path) -> None:
    assert load_manifest(put(tmp_path, WHOLE)).components == COMPONENTS


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_hold_together_is_told_at_once(case: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(WHOLE))
    change, words = WRONG[case]
    change(content)
    digits = json.dumps(WHOLE["model"]).replace('"layers": 2', '"layers": ' + "9" * 4001)
    (tmp_path / "manifest.json").write_text(json.dumps(content).replace('"DIGITS"', digits))
    started = time.process_time()
    with pytest.raises(UserError, match=words) as told:
        load_manifest(tmp_path)
    assert time.process_time() - started < 1
    lines = str(told.value).splitlines()
    assert lines[0].startswith(f"{tmp_path / 'manifest.json'} is corrupt: ")
    assert all(map(str.isprintable, lines))
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("name", [*MODELS, IMAGE.name])
def test_what_the_runtime_drives_is_what_the_exporter_declares(name: str) -> None:
    spec = MODELS.get(name, IMAGE)
    seen = set()
    for component in COMPONENTS:
        for stage in component_stages(spec, component, BlockOptions()):
            entry = stage.entry("x.onnx")
            width = {"Wan2.1": 384, "Wan2.1-tiny": 32}[spec.vae]
            inputs, outputs = declared(facts(spec)["model"], width)[entry.name]
            taken = {t.name: (t.dtype, t.dims) for t in entry.activations if not t.name.startswith("cache.")}
            given = {n: (t.dtype, t.dims) for n, t in entry.gives.items() if not n.startswith("cache.")}
            assert (taken, given) == (inputs, outputs), entry.name
            seen.add(entry.name)
    assert len(seen) == (13 if spec.image_to_video else 10)


# --- the torch backend runs functions, whose tensors the manifest must state ---


def _torch_says(folder: Path, content: Content, words: str) -> None:
    manifest = load_manifest(put(folder, content))
    with pytest.raises(UserError, match=words):
        plan_parts(manifest, planned(TORCH, manifest), bundle_parts(manifest))


def test_the_torch_backend_takes_no_other_stages_than_its_functions(tmp_path: Path) -> None:
    tiny = bare_manifest(MODELS["wan-tiny"])
    assert len(stage_functions(tiny)) == 10
    whole: Content = json.loads(encode_manifest(tiny))
    changed: list[tuple[Callable[[Content], Any], str]] = [
        (sampler(linear="bf16"), "stage block is not that of its model and choices"),
        (tensor("block", "modulation", dims=[7, 256]), r"modulation: fp32 \[6, 256\], a weight"),
        (tensor("block", "ffn.0.bias", name="ffn.0.b"), r"ffn\.0\.bias: fp32"),
        (lambda m: m.update(text_linear="int8"), "stage text_block is not that"),
        (model(ffn_dim=640), "model is not wan-tiny(.|\n)*ffn_dim 512"),
        (model(layers=3), "model is not wan-tiny(.|\n)*layers 2"),
    ]
    for change, words in changed:
        content = json.loads(json.dumps(whole))
        change(content)
        _torch_says(tmp_path, content, words)


def test_a_plan_is_made_at_once_whatever_a_manifest_says(tmp_path: Path) -> None:
    """The largest figures that are taken: 256 layers."""
    many = replace(MODELS["wan-tiny"], name="deep", layers=256)
    write_manifest(tmp_path, msgspec.structs.replace(bare_manifest(many)))
    manifest = load_manifest(tmp_path)
    manifest = msgspec.structs.replace(
        with_media(manifest, media_stages(MODELS["wan-tiny"])),
        model=msgspec.structs.replace(manifest.model, name="wan-tiny"),
    )
    stages = tuple(msgspec.structs.replace(s, engine=s.onnx, activation_bytes=1 << 50) for s in manifest.stages)
    from runtime.backends.tensorrt import TENSORRT

    started = time.process_time()
    manifest = msgspec.structs.replace(manifest, stages=stages)
    figures = planned(TENSORRT, manifest)
    with pytest.raises(UserError, match="too little"):
        plan_parts(manifest, figures, ("DiT",), vram=1 << 30)
    assert time.process_time() - started < 2
