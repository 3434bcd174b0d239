"""The components of a bundle and their stages, from DiT to tiny decoder. One table, one way to export."""

from __future__ import annotations

from exporter.models import ModelSpec
from exporter.networks.dit.options import BlockOptions
from exporter.networks.dit.stages import dit_stages
from exporter.networks.stage_spec import StageSpec
from exporter.networks.text.encoder import TEXT_ENCODERS
from exporter.networks.text.stages import text_stages
from exporter.networks.tiny.spec import TINY_DECODERS
from exporter.networks.tiny.stages import tiny_stages
from exporter.networks.vae.spec import VAES
from exporter.networks.vae.stages import vae_stages
from exporter.networks.weight_spec import LinearMode
from runtime.bundle import Component


def component_stages(
    model: ModelSpec, component: Component, options: BlockOptions, text_linear: LinearMode = "bf16"
) -> tuple[StageSpec, ...]:
    """A component's stages in the order in which they first run."""
    if component == "dit":
        return dit_stages(model, options)
    if component == "text":
        return text_stages(TEXT_ENCODERS[model.text_encoder], text_linear)
    if component == "tiny":
        return tiny_stages(TINY_DECODERS[model.tiny_decoder], model)
    return vae_stages(VAES[model.vae], model)
