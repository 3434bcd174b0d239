"""A manifest's stages against what the functions take that the torch backend runs in place of engines."""

from __future__ import annotations

from dataclasses import replace

from exporter.models import MODELS, ModelSpec, model_named
from exporter.networks.components import component_stages
from exporter.networks.dit.options import BlockOptions
from exporter.networks.stage_spec import StageSpec
from plugins.errors import UserError
from runtime.bundle import Manifest, ModelFacts, TensorInfo

_ARCHITECTURE = ("dim", "layers", "heads", "ffn_dim", "in_channels", "experts")


def bundle_stages(manifest: Manifest, options: BlockOptions) -> dict[str, StageSpec]:
    """Each of a bundle's stages as the exporter makes it. Raises UserError where the manifest states another."""
    model = _model_of(manifest.model)
    found: dict[str, StageSpec] = {}
    for component in manifest.components:
        whole = model if component == "dit" else model_named(model.name)
        for stage in component_stages(whole, component, options, manifest.text_linear):
            entry = manifest.stage(stage.name)
            for wanted, have in ((stage.input_infos, entry.inputs), (stage.output_infos, entry.outputs)):
                if wanted != have:
                    raise _other(stage.name, wanted, have)
            found[stage.name] = stage
    return found


def _model_of(facts: ModelFacts) -> ModelSpec:
    """The model of the table; one that is not there with the manifest's figures. UserError where the two disagree."""
    own = {name: getattr(facts, name) for name in _ARCHITECTURE if name != "heads"}
    if (known := MODELS.get(facts.name)) is None:
        return replace(next(iter(MODELS.values())), name=facts.name, **own)
    for name in _ARCHITECTURE:
        if getattr(known, name) != getattr(facts, name):
            raise UserError(
                f"The bundle's model is not {facts.name}.",
                expected=f"{name} {getattr(known, name)}",
                got=str(getattr(facts, name)),
                remedy="export the bundle again",
            )
    return known


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
