"""What a bundle's ``polygraphy_scripts.py`` calls: network, builder config and inputs of one stage, for Polygraphy.

Polygraphy's ``--plugins`` takes shared libraries only; a network script registers our Python plugins itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.models import model_named
from runtime.bundle import Manifest, StageFiles, load_manifest

TOKENS = 256  # L of the inputs that are made up: small enough for any machine
SEED = 0


def _stage(manifest: Manifest, name: str) -> StageFiles:
    return next(stage for stage in manifest.stages if stage.name == name)


def network(bundle: Path, stage: str) -> tuple[Any, Any, Any]:
    """Builder, parsed network and parser of a stage's ONNX graph, our plugins registered. Raises RuntimeError."""
    from polygraphy.backend.trt import get_trt_logger

    from exporter.flavour import load
    from plugins.registry import OPS
    from plugins.tensorrt_plugin import register

    manifest = load_manifest(bundle)
    trt = load(manifest.gpu.flavour)
    register(trt, OPS)
    builder = trt.Builder(get_trt_logger())
    made = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(made, get_trt_logger())
    if not parser.parse_from_file(str(bundle / _stage(manifest, stage).onnx)):
        raise RuntimeError("\n".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    return builder, made, parser


def config(bundle: Path, stage: str, builder: Any, made: Any) -> Any:
    """The builder config that export used: the bundle's GPU, no TF32, the stage's profile of L."""
    from exporter.flavour import load, target
    from exporter.gpus import gpu_named

    manifest = load_manifest(bundle)
    trt = load(manifest.gpu.flavour)
    chosen = builder.create_builder_config()
    chosen.clear_flag(trt.BuilderFlag.TF32)
    target(trt, chosen, gpu_named(manifest.gpu.name))
    limits = _stage(manifest, stage).profile
    profile = builder.create_optimization_profile()
    for index in range(made.num_inputs):
        tensor = made.get_input(index)
        if -1 in tuple(tensor.shape):
            shapes = [tuple(size if dim == -1 else dim for dim in tensor.shape)
                      for size in (limits.min, limits.opt, limits.max)]  # fmt: skip
            profile.set_shape(tensor.name, *shapes)
    chosen.add_optimization_profile(profile)
    return chosen


def inputs(bundle: Path, stage: str, tokens: int = TOKENS) -> Iterator[dict[str, Any]]:
    """One feed: made-up activations at L = ``tokens``, and the bundle's weights (of block 0), random without any."""
    import torch

    from exporter.compare.weights import BundleWeights
    from exporter.trace import activation_inputs
    from plugins.torch_op import torch_dtype

    manifest = load_manifest(bundle)
    model = model_named(manifest.model.name)
    generator = torch.Generator().manual_seed(SEED)
    activations = activation_inputs(model, stage)  # type: ignore[arg-type]
    weights = {}
    if manifest.weights:
        weights = BundleWeights(bundle, manifest, model)(model.experts[0], stage)  # type: ignore[arg-type]
    feed = {}
    for info in _stage(manifest, stage).inputs:
        shape = [tokens if isinstance(dim, str) else dim for dim in info.dims]
        if info.name in weights:
            feed[info.name] = weights[info.name]
        elif info.dtype == "int8":
            feed[info.name] = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        else:
            scale = 1.0 if info.name in activations else 0.02
            feed[info.name] = (scale * torch.randn(shape, generator=generator)).to(torch_dtype(info.dtype))
    yield feed


def save_inputs(bundle: Path, stage: str, out: Path, tokens: int = TOKENS) -> None:
    """Write the feed for ``polygraphy run --load-inputs``."""
    from polygraphy.json import save_json

    save_json(list(inputs(bundle, stage, tokens)), str(out), description="input data")
