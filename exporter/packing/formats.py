"""The table of component formats: how text encoder, VAE and tiny decoder of a model are published and packed."""

from __future__ import annotations

import re

from exporter.checkpoint.table import Expected
from exporter.checkpoint.text_names import text_expected, text_name, text_sources
from exporter.checkpoint.tiny_names import OTHERS
from exporter.checkpoint.vae_names import vae_name
from exporter.models import ModelSpec
from exporter.networks.text.encoder import TEXT_ENCODERS, TextSpec, text_weights
from exporter.networks.tiny.spec import TINY_DECODERS, TinySpec, tiny_weights
from exporter.networks.vae.halves import HALVES
from exporter.networks.vae.spec import VAES, VaeSpec
from exporter.networks.vae.weights import packed_weights, vae_weights
from exporter.networks.weight_spec import LinearMode
from exporter.packing.component import ComponentFormat
from runtime.bundle import MediaComponent

#: Of a whole UMT5, and the tokenizer that ComfyUI's files hold as bytes.
_NOT_ENCODER = re.compile(r"spiece_model|(decoder|lm_head)\..+")


def component_format(model: ModelSpec, component: MediaComponent, text_linear: LinearMode = "bf16") -> ComponentFormat:
    """How a component of this model is published, and packed for a text encoder with such Linears."""
    if component == "text":
        return text_format(TEXT_ENCODERS[model.text_encoder], text_linear)
    return vae_format(VAES[model.vae]) if component == "vae" else tiny_format(TINY_DECODERS[model.tiny_decoder])


def text_format(spec: TextSpec, linear: LinearMode = "bf16") -> ComponentFormat:
    """umT5: Wan's models_t5_umt5-xxl-enc-bf16.pth, or transformers' UMT5EncoderModel."""
    return ComponentFormat(
        title=f"text encoder {spec.name}",
        subfolder="text_encoder",
        pattern="*t5*.pth",
        rename=text_name,
        expected=text_expected(spec),
        packed=text_weights(spec, linear),
        sources=text_sources,
        choices={"linear": linear},
        others=_NOT_ENCODER,
    )


def vae_format(spec: VaeSpec) -> ComponentFormat:
    """The VAE: Wan's Wan2.1_VAE.pth, or diffusers' AutoencoderKLWan; encoder and decoder are always both packed."""
    packed = {name: weight for half in HALVES for name, weight in packed_weights(spec, half).items()}
    return ComponentFormat(
        title=f"VAE {spec.name}",
        subfolder="vae",
        pattern="*VAE*.pth",
        rename=lambda name: vae_name(name, spec),
        expected={name: Expected(shape) for name, shape in vae_weights(spec).items()},
        packed=packed,
        sources=lambda name: (name,),
    )


def tiny_format(spec: TinySpec) -> ComponentFormat:
    """The tiny decoder: TAEHV's taew2_1.pth or its safetensors, whose encoder is passed over."""
    packed = tiny_weights(spec)
    return ComponentFormat(
        title=f"tiny decoder {spec.name}",
        subfolder="taehv",
        pattern="*taew2_1*",
        rename=lambda name: name,
        expected={name: Expected(weight.shape) for name, weight in packed.items()},
        packed=packed,
        sources=lambda name: (name,),
        others=OTHERS,
    )
