"""The text encoder and the VAE of wan-tiny with random weights, as a manifest and files, without a trace or a build."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file

from exporter.models import MODELS, ModelSpec
from exporter.networks.components import component_stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.text.encoder import TEXT_ENCODERS, text_weights
from exporter.networks.tiny.spec import TINY_DECODERS, tiny_weights
from exporter.networks.vae.halves import HALVES
from exporter.networks.vae.spec import VAES
from exporter.networks.vae.weights import packed_weights
from exporter.networks.weight_spec import LinearMode, WeightSpec
from plugins.torch_dtypes import torch_dtype
from runtime.bundle import Component, FileInfo, GpuFacts, Manifest, StageEntry, file_info, write_manifest
from runtime.numerics import Array
from tests.support.random_bundle import facts

TEXT_NAME, VAE_NAME, TINY_NAME = "text.safetensors", "vae.safetensors", "tiny.safetensors"
TOKENIZER = "tokenizer.json"


def random_tensors(table: dict[str, WeightSpec], seed: int) -> dict[str, torch.Tensor]:
    """Matrices and kernels of deviation 1/√fan-in, norms around 1, small biases."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, spec in table.items():
        values = torch.randn(spec.shape, generator=generator)
        if "norm" in name or "gamma" in name:
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values = 0.1 * values
        elif len(spec.shape) > 1 and "embedding" not in name:
            values = values / np.prod(spec.shape[1:]) ** 0.5
        made[name] = values.to(torch_dtype(spec.dtype))
    return made


def vae_table(model: ModelSpec) -> dict[str, WeightSpec]:
    return {name: spec for half in HALVES for name, spec in packed_weights(VAES[model.vae], half).items()}


def media_stages(model: ModelSpec, text_linear: LinearMode = "bf16") -> tuple[StageEntry, ...]:
    """The manifest's entries, from the same table that the exporter traces."""
    components: tuple[Component, ...] = ("text", "vae", "tiny")
    return tuple(
        stage.entry(f"{stage.name}.onnx")
        for component in components
        for stage in component_stages(model, component, BlockOptions(), text_linear)
    )


def with_media(manifest: Manifest, stages: tuple[StageEntry, ...], text_linear: LinearMode = "bf16") -> Manifest:
    """The manifest with these stages of text encoder and VAE in place of those it has; their graphs are listed."""
    listed = {stage.onnx: FileInfo(sha256="0" * 64, bytes=0) for stage in stages}
    return msgspec.structs.replace(
        manifest,
        stages=(*manifest.stages_of("dit"), *stages),
        files={**listed, **manifest.files},
        text_linear=text_linear,
    )


def bare_manifest(model: ModelSpec, text_linear: LinearMode = "bf16") -> Manifest:
    """A manifest with every stage of a model and no files behind it: for runners that are given tensors."""
    found = facts(model)
    manifest = Manifest(
        **found,
        gpu=GpuFacts(name="rtx5090", sm=120, flavour="tensorrt_rtx"),
        tools={},
        plans={},
        files={stage.onnx: FileInfo(sha256="0" * 64, bytes=0) for stage in found["stages"]},
        weights={},
        vram_estimate_bytes=0,
    )
    return with_media(manifest, media_stages(model, text_linear), text_linear)


def add_media(folder: Path, manifest: Manifest, model: ModelSpec | None = None, seed: int = 7) -> Manifest:
    """Write weights and a tokenizer into a bundle, list them, and return the new manifest."""
    model = model or MODELS[manifest.model.name]
    save_file(random_tensors(text_weights(TEXT_ENCODERS[model.text_encoder]), seed), folder / TEXT_NAME)
    save_file(random_tensors(vae_table(model), seed + 1), folder / VAE_NAME)
    save_file(random_tensors(tiny_weights(TINY_DECODERS[model.tiny_decoder]), seed + 2), folder / TINY_NAME)
    write_tokenizer(folder / TOKENIZER)
    stages = media_stages(model)
    for stage in stages:
        (folder / stage.onnx).write_bytes(b"not traced")
    names = [TEXT_NAME, VAE_NAME, TINY_NAME, TOKENIZER, *(stage.onnx for stage in stages)]
    added = msgspec.structs.replace(
        manifest,
        stages=(*manifest.stages_of("dit"), *stages),
        media_weights={"text": TEXT_NAME, "vae": VAE_NAME, "tiny": TINY_NAME},
        tokenizer=TOKENIZER,
        files={**manifest.files, **{name: file_info(folder / name) for name in names}},
    )
    write_manifest(folder, added)
    return added


def write_tokenizer(path: Path) -> None:
    """A tokenizer of umT5's kind: unigram pieces with a marked space, and an end mark with id 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = [chr(c) for c in range(33, 127)] + ["▁"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((letter, -5.0) for letter in letters), ("▁cat", -3.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(path))


def smooth_latents(shape: tuple[int, int, int], seed: int = 0) -> Array:
    """Latents fp32 [16, T, H, W]."""
    return np.random.default_rng(seed).standard_normal((16, *shape), dtype=np.float32)
