"""What each part of a generation needs of device memory, from the bundle alone, before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runtime.backends.kind import BackendKind
from runtime.backends.protocol import Activations
from runtime.bundle import Manifest
from runtime.dims import Sizes as Dims
from runtime.inputs import latent_shape
from runtime.media.parts.residency import HOST_LIMIT, Need, Residency, plan_residency
from runtime.media.text.encoder import TextBytes, text_bytes, text_layers
from runtime.media.vae.plan import Task, VaePlan, plan_vae
from runtime.pipeline import plan_bundle
from runtime.weights.file import WeightsFile
from runtime.weights.memory_plan import MemoryPlan

DIT, TEXT, ENCODE, DECODE, TINY = "DiT", "text", "VAE encode", "VAE decode", "tiny decode"
_TASKS: Mapping[str, Task] = {ENCODE: "encode", DECODE: "decode", TINY: "tiny"}
LONGEST = 512  # tokens of a prompt
_RANKS = (DIT, DECODE, TINY, ENCODE, TEXT)  # those first that cost most to bring back, or least to keep


@dataclass(frozen=True)
class Sizes:
    """What memory depends on; None: the bundle's own.

    ``lengths``: tokens of each prompt that is encoded; ``text_layers``: of the text encoder, 0 where nobody knows;
    ``preview``: whether the tiny decoder runs beside the DiT.
    """

    size: tuple[int, int] | None = None
    frames: int | None = None
    steps: int | None = None
    lengths: tuple[int, ...] = (LONGEST,)
    text_layers: int = 0
    preview: bool = False


def bundle_parts(manifest: Manifest) -> tuple[str, ...]:
    """The parts that a bundle's stages make up."""
    stages = {entry.name for entry in manifest.stages}
    named = {TEXT: "text_block", ENCODE: "encode_next", DIT: "block", DECODE: "decode_next", TINY: "tiny_next"}
    return tuple(part for part, stage in named.items() if stage in stages)


_OWN = Sizes()


@dataclass(frozen=True)
class GenerationPlan:
    """All parts of a generation, where their weights are between calls, and the DiT's own plan."""

    residency: Residency
    dit: MemoryPlan

    @property
    def peak(self) -> int:
        """Bytes of device memory at most, besides the CUDA context."""
        return self.residency.most

    def lines(self) -> list[str]:
        """The plan as one reads it."""
        return self.residency.lines()


class Figures(Protocol):
    """What stages take: a runner says it of itself, a backend (``planned``) before there is one."""

    @property
    def overhead_bytes(self) -> int: ...

    def activation_bytes(self, stage: str, sizes: Dims) -> int: ...


@dataclass(frozen=True)
class _Planned:
    overhead_bytes: int
    activations: Activations

    def activation_bytes(self, stage: str, sizes: Dims) -> int:
        return self.activations(stage, sizes)


def planned(kind: BackendKind, manifest: Manifest) -> Figures:
    """A backend's own figures, on any machine."""
    return _Planned(kind.overhead(manifest), kind.activations(manifest))


def listed_layers(folder: Path, manifest: Manifest) -> int:
    """How many layers the text encoder has, by its weights; 0 where they are not there."""
    name = manifest.media_weights.get("text")
    if name is None or not (folder / name).is_file():
        return 0
    with closing(WeightsFile(folder / name)) as file:
        return text_layers(file)


def plan_parts(
    manifest: Manifest,
    figures: Figures,
    parts: Sequence[str],
    sizes: Sizes = _OWN,
    *,
    vram: int | None = None,
    again: Collection[str] = (),
    host_limit: int = HOST_LIMIT,
) -> GenerationPlan:
    """The plan of these parts in the order of their runs, and of the DiT whether among them or not.

    ``again``: the parts that run again later, which may stay; ``vram`` in bytes, None means no limit. Raises UserError
    where a part cannot keep to it.
    """
    activations, spare = figures.activation_bytes, beside_dit(manifest, figures, sizes, vram)
    left = None if vram is None else max(0, vram - spare)
    asked: dict[str, Any] = {"size": sizes.size, "frames": sizes.frames, "steps": sizes.steps, "vram": left}
    dit = plan_bundle(manifest, activations, figures.overhead_bytes, **asked)
    _, height, width = latent_shape(manifest, sizes.size, sizes.frames)
    made = []
    for name in parts:
        if name == DIT:
            made.append(_dit_need(dit, spare))
        elif name == TEXT:
            found = text_bytes(manifest, activations, sizes.lengths, sizes.text_layers)
            made.append(_text_need(found, sizes.lengths, figures.overhead_bytes))
        else:
            limit = None if vram is None else max(0, vram - figures.overhead_bytes)
            plan = plan_vae(manifest, activations, _TASKS[name], height, width, limit)
            made.append(_vae_need(name, plan, figures.overhead_bytes))
    return GenerationPlan(plan_residency(made, vram, again=again, host_limit=host_limit), dit)


def beside_dit(manifest: Manifest, figures: Figures, sizes: Sizes, vram: int | None) -> int:
    """Bytes of device memory that the DiT leaves to previews."""
    if not sizes.preview:
        return 0
    _, height, width = latent_shape(manifest, sizes.size, sizes.frames)
    return plan_vae(manifest, figures.activation_bytes, "tiny", height, width, vram).peak


def _dit_need(plan: MemoryPlan, spare: int) -> Need:
    every = (plan.sizes.embed + plan.sizes.head + plan.layers * plan.sizes.block) * len(plan.experts)
    streamed = plan.streamed * plan.sizes.block * len(plan.experts)
    again = streamed if plan.all_experts or len(plan.experts) == 1 else every
    how, peak = plan.how + (", previews beside it" if spare else ""), plan.peak + spare
    return Need(DIT, how, plan.weights, peak, peak, plan.weights, every, again, _RANKS.index(DIT))


def _text_need(found: TextBytes, lengths: Sequence[int], overhead: int) -> Need:
    longest = f"{max(lengths)} tokens"
    how = longest if len(lengths) == 1 else f"{len(lengths)} prompts of at most {longest}"
    running = found.running + overhead
    peak, passing = found.weights + running, found.passing + running
    return Need(TEXT, how, found.weights, peak, passing, 0, found.weights, 0, _RANKS.index(TEXT))


def _vae_need(name: str, plan: VaePlan, overhead: int) -> Need:
    peak = plan.peak + overhead
    return Need(name, plan.how, plan.weights, peak, peak, plan.weights, plan.weights, 0, _RANKS.index(name))
