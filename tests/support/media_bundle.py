"""The text encoder and the VAE of wan-tiny with random weights, as a manifest and files, without a trace or a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file

from exporter.models import MODELS, ModelSpec
from exporter.networks.components import component_stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.text.encoder import TEXT_ENCODERS, text_weights
from exporter.networks.vae.halves import HALVES
from exporter.networks.vae.spec import VAES
from exporter.networks.vae.weights import packed_weights
from exporter.networks.weight_spec import LinearMode, WeightSpec
from plugins.torch_dtypes import torch_dtype
from runtime.bundle import Manifest, MediaStage, Profile, TensorInfo, file_info, write_manifest
from runtime.numerics import Array

TEXT_NAME, VAE_NAME, TOKENIZER = "text.safetensors", "vae.safetensors", "tokenizer.json"


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


def media_stages(model: ModelSpec, text_linear: LinearMode = "bf16") -> tuple[MediaStage, ...]:
    """The manifest's entries, from the same table that the exporter traces."""

    def infos(table: dict[str, Any]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(name=name, dtype=dtype, dims=dims) for name, (dims, dtype) in table.items())

    made = []
    for component in ("text", "vae"):
        for stage in component_stages(model, component, BlockOptions(), text_linear):
            taken = {name: (i.dims, i.dtype) for name, i in stage.inputs.items()}
            taken |= {name: (w.shape, w.dtype) for name, w in stage.weights.items()}
            given = _outputs(stage)
            low, middle, high = stage.profile
            made.append(
                MediaStage(
                    component=component,
                    name=stage.name,
                    onnx=f"{stage.name}.onnx",
                    inputs=infos(taken),
                    outputs=infos(given),
                    profile=Profile(min=low, opt=middle, max=high),
                )
            )
    return tuple(made)


def _outputs(stage: Any) -> dict[str, Any]:
    if stage.component == "text":
        dtype = "fp32" if stage.name == "text_block" else "bf16"
        return {stage.output_names[0]: (stage.inputs["x"].dims, dtype)}
    decodes = stage.name in ("decode_first", "decode_next")
    named = {"chunk": "uint8" if decodes else "fp32" if stage.name == "encode_latent" else "bf16", "total": "fp32"}
    dtypes = [named.get(name, "bf16") for name in stage.outputs]
    return dict(zip(stage.output_names, zip(stage.output_dims, dtypes, strict=True), strict=True))


def add_media(folder: Path, manifest: Manifest, model: ModelSpec | None = None, seed: int = 7) -> Manifest:
    """Write weights and a tokenizer into a bundle, list them, and return the new manifest."""
    model = model or MODELS[manifest.model.name]
    save_file(random_tensors(text_weights(TEXT_ENCODERS[model.text_encoder]), seed), folder / TEXT_NAME)
    save_file(random_tensors(vae_table(model), seed + 1), folder / VAE_NAME)
    write_tokenizer(folder / TOKENIZER)
    stages = media_stages(model)
    for stage in stages:
        (folder / stage.onnx).write_bytes(b"not traced")
    names = [TEXT_NAME, VAE_NAME, TOKENIZER, *(stage.onnx for stage in stages)]
    added = msgspec.structs.replace(
        manifest,
        media=stages,
        media_weights={"text": TEXT_NAME, "vae": VAE_NAME},
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
