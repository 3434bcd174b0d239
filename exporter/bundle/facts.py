"""What a manifest says of a model and of how it is sampled."""

from __future__ import annotations

from exporter.models import FPS, FREQ_DIM, TEXT_LENGTH, ModelSpec
from exporter.networks.dit.options import BlockOptions
from runtime.bundle import ModelFacts, SamplerFacts


def model_facts(model: ModelSpec) -> ModelFacts:
    """The architecture and the default video."""
    return ModelFacts(
        name=model.name,
        dim=model.dim,
        layers=model.layers,
        heads=model.heads,
        ffn_dim=model.ffn_dim,
        in_channels=model.in_channels,
        text_length=TEXT_LENGTH,
        freq_dim=FREQ_DIM,
        size=model.size,
        frames=model.frames,
        fps=FPS,
        max_tokens=model.max_tokens,
        experts=model.experts,
        max_size=model.max_size,
    )


def sampler_facts(model: ModelSpec, options: BlockOptions) -> SamplerFacts:
    """How the loop runs, and what the block was built for."""
    return SamplerFacts(
        steps=model.steps,
        sigma_max=model.sigma_max,
        boundary=model.boundary,
        topk_milli=options.topk_milli,
        attention=options.attention,
        linear=options.linear,
    )
