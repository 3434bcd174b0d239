"""A manifest's stages against what the functions take that the torch backend runs in place of engines."""

from __future__ import annotations

from dataclasses import replace

from exporter.models import MODELS, ModelSpec
from exporter.networks.components import component_stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.stage_spec import StageSpec
from plugins.errors import UserError
from runtime.bundle import Manifest, TensorInfo

_ARCHITECTURE = ("dim", "layers", "heads", "ffn_dim", "in_channels", "experts")


def bundle_stages(manifest: Manifest, options: BlockOptions) -> dict[str, StageSpec]:
    """Each of a bundle's stages as the exporter makes it. Raises UserError where the manifest states another."""
    model = _model_of(manifest, options)
    found: dict[str, StageSpec] = {}
    for component in manifest.components:
        for stage in component_stages(model, component, options, manifest.text_linear):
            entry = manifest.stage(stage.name)
            for wanted, have in ((stage.input_infos, entry.inputs), (stage.output_infos, entry.outputs)):
                if wanted != have:
                    raise _other(stage.name, wanted, have)
            found[stage.name] = stage
    return found


def _model_of(manifest: Manifest, options: BlockOptions) -> ModelSpec:
    """The model of the table; for one that is not there the manifest's figures, text encoder and VAE of one that is.

    Raises UserError where manifest and table disagree.
    """
    facts = manifest.model
    own = {name: getattr(facts, name) for name in _ARCHITECTURE if name != "heads"}
    if (known := MODELS.get(facts.name)) is None:
        likely = [replace(model, name=facts.name, **own) for model in MODELS.values()]
        return next((model for model in likely if _has_media_of(model, manifest, options)), likely[0])
    for name in _ARCHITECTURE:
        if getattr(known, name) != getattr(facts, name):
            raise UserError(
                f"The bundle's model is not {facts.name}.",
                expected=f"{name} {getattr(known, name)}",
                got=str(getattr(facts, name)),
                remedy="export the bundle again",
            )
    return known


def _has_media_of(model: ModelSpec, manifest: Manifest, options: BlockOptions) -> bool:
    """Whether the manifest's text encoder and VAE are this model's, as far as it has them."""
    stages = [
        stage
        for component in manifest.components
        if component != "dit"
        for stage in component_stages(model, component, options, manifest.text_linear)
    ]
    return all(manifest.stage(stage.name).inputs == stage.input_infos for stage in stages)


def _other(stage: str, wanted: tuple[TensorInfo, ...], have: tuple[TensorInfo, ...]) -> UserError:
    index = next((i for i, (a, b) in enumerate(zip(wanted, have, strict=False)) if a != b), min(len(wanted), len(have)))
    expected, got = (_said(tensors[index]) if index < len(tensors) else "no more tensors" for tensors in (wanted, have))
    return UserError(
        f"The bundle's stage {stage} is not that of its model and choices.",
        expected=expected,
        got=got,
        remedy="export the bundle again",
    )


def _said(tensor: TensorInfo) -> str:
    return f"{tensor.name}: {tensor.dtype} {list(tensor.dims)}{', a weight' if tensor.weight else ''}"
