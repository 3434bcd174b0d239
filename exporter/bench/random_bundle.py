"""A runnable bundle of random packed weights, made without a checkpoint, a trace or a build: for the torch backend.

``add_media`` adds text encoder, decoders and a tokenizer, so that a bundle makes videos.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporter.bench.random_weights import write_random
from exporter.bundle.facts import model_facts, sampler_facts
from exporter.graphs.stage_graph import tools
from exporter.models import ModelSpec
from exporter.networks.components import component_stages
from exporter.networks.dit.options import Attention, BlockOptions
from exporter.networks.dit.stages import dit_stages
from exporter.networks.dit.weights import packed_metadata, packed_tensors
from exporter.networks.text.encoder import TEXT_ENCODERS, text_weights
from exporter.networks.tiny.spec import TINY_DECODERS, tiny_weights
from exporter.networks.vae.halves import HALVES
from exporter.networks.vae.spec import VAES
from exporter.networks.vae.weights import packed_weights
from exporter.networks.weight_spec import LinearMode
from runtime.bundle import (
    Component,
    FileInfo,
    GpuFacts,
    Manifest,
    file_info,
    write_manifest,
)


def write_weights(path: Path, model: ModelSpec, linear: LinearMode = "int8", seed: int = 0) -> None:
    """Random packed weights of one expert, in safetensors."""
    write_random(path, packed_tensors(model, linear), seed, packed_metadata(model, linear))


def make_random_bundle(
    folder: Path,
    model: ModelSpec,
    *,
    gpu: tuple[str, int] = ("rtx5090", 120),
    attention: Attention = "sagesla",
    linear: LinearMode = "int8",
    topk_milli: int = 100,
    hashed: bool = True,
    seed: int = 0,
) -> Manifest:
    """Write an ONNX-only bundle with weights of every expert; ``hashed`` False leaves the weights' sha256 at zero."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for stage in ("embed", "block", "head"):
        (folder / f"{stage}.onnx").write_bytes(b"not traced")
        files[f"{stage}.onnx"] = file_info(folder / f"{stage}.onnx")
    weights = {}
    for index, expert in enumerate(model.experts):
        weights[expert] = f"weights-{expert}.safetensors"
        path = folder / weights[expert]
        write_weights(path, model, linear, seed + index)
        files[path.name] = file_info(path) if hashed else FileInfo(sha256="0" * 64, bytes=path.stat().st_size)
    manifest = Manifest(
        **facts(model, attention, linear, topk_milli),
        gpu=GpuFacts(name=gpu[0], sm=gpu[1], flavour="tensorrt" if gpu[1] in (80, 90, 100) else "tensorrt_rtx"),
        tools=tools(),
        plans={},
        files=files,
        weights=weights,
        has_proj_l=True,
        vram_estimate_bytes=0,
    )
    write_manifest(folder, manifest)
    return manifest


def facts(
    model: ModelSpec, attention: Attention = "sagesla", linear: LinearMode = "int8", topk_milli: int = 100
) -> dict[str, Any]:
    """What a manifest says of a model, a sampler and the DiT's stages."""
    options = BlockOptions(attention, topk_milli, linear)
    return {
        "model": model_facts(model),
        "sampler": sampler_facts(model, options),
        "stages": tuple(stage.entry(f"{stage.name}.onnx") for stage in dit_stages(model, options)),
    }


def add_media(
    folder: Path, manifest: Manifest, model: ModelSpec, shared: Mapping[str, Path], seed: int = 7
) -> Manifest:
    """Write text encoder, VAE, tiny decoder and a tokenizer into a bundle, list them, and return the new manifest.

    ``shared``: files that another bundle has already, by their names; they are linked.
    """
    tables = {
        "text.safetensors": text_weights(TEXT_ENCODERS[model.text_encoder]),
        "vae.safetensors": {
            name: spec for half in HALVES for name, spec in packed_weights(VAES[model.vae], half).items()
        },
        "tiny.safetensors": tiny_weights(TINY_DECODERS[model.tiny_decoder]),
    }
    for name, table in tables.items():
        if name in shared:
            (folder / name).hardlink_to(shared[name])
        else:
            write_random(folder / name, table, seed)
    (folder / "tokenizer.json").write_text(_TOKENIZER)
    components: tuple[Component, ...] = ("text", "vae", "tiny")
    stages = [stage for one in components for stage in component_stages(model, one, BlockOptions())]
    entries = tuple(stage.entry(f"{stage.name}.onnx") for stage in stages)
    for entry in entries:
        (folder / entry.onnx).write_bytes(b"not traced")
    names = [*tables, "tokenizer.json", *(entry.onnx for entry in entries)]
    added = msgspec.structs.replace(
        manifest,
        stages=(*manifest.stages_of("dit"), *entries),
        media_weights={"text": "text.safetensors", "vae": "vae.safetensors", "tiny": "tiny.safetensors"},
        tokenizer="tokenizer.json",
        files={**manifest.files, **{name: file_info(folder / name) for name in names}},
    )
    write_manifest(folder, added)
    return added


#: A tokenizer of umT5's kind that knows single letters: unigram pieces with a marked space, an end mark of id 1.
_TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [
                ["<pad>", 0.0],
                ["</s>", 0.0],
                ["<unk>", -10.0],
                *([letter, -5.0] for letter in [*map(chr, range(33, 127)), "▁"]),
            ],
            "byte_fallback": False,
        },
    }
)
