"""What each part of a generation needs of device memory, from the bundle alone, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.backends.kind import BackendKind
from runtime.bundle import Manifest
from runtime.byte_sizes import gigabytes
from runtime.inputs import latent_shape
from runtime.media.text.encoder import text_bytes
from runtime.media.vae.plan import Task, plan_vae
from runtime.pipeline import plan_bundle
from runtime.weights.memory_plan import MemoryPlan

DIT, TEXT, ENCODE, DECODE, TINY = "DiT", "text", "VAE encode", "VAE decode", "tiny decode"
_TASKS: Mapping[str, Task] = {ENCODE: "encode", DECODE: "decode", TINY: "tiny"}
LONGEST = 512  # tokens of a prompt


@dataclass(frozen=True)
class PartPlan:
    """One part: ``peak`` in bytes of device memory at most, besides the CUDA context; ``how`` it keeps to that."""

    name: str
    peak: int
    how: str


@dataclass(frozen=True)
class GenerationPlan:
    """All parts of a generation in their order; they run one after the other, so that the largest counts."""

    parts: tuple[PartPlan, ...]
    dit: MemoryPlan

    @property
    def peak(self) -> int:
        """Bytes of the largest part."""
        return max(part.peak for part in self.parts)

    def lines(self) -> list[str]:
        """The plan as one reads it."""
        width = max(len(part.name) for part in self.parts)
        figures = [gigabytes(part.peak) for part in self.parts]
        column = max(len(figure) for figure in figures)
        rows = zip(self.parts, figures, strict=True)
        listed = [f"  {part.name:<{width}}  {figure:>{column}}  {part.how}" for part, figure in rows]
        return [f"Device memory at most, part by part (one at a time): {gigabytes(self.peak)}", *listed]


def bundle_parts(manifest: Manifest) -> tuple[str, ...]:
    """The parts that a bundle's stages make up."""
    stages = {entry.name for entry in manifest.stages}
    named = {TEXT: "text_block", ENCODE: "encode_next", DIT: "block", DECODE: "decode_next", TINY: "tiny_next"}
    return tuple(part for part, stage in named.items() if stage in stages)


def plan_parts(
    manifest: Manifest,
    kind: BackendKind,
    parts: Sequence[str],
    *,
    lengths: Sequence[int] = (LONGEST,),
    vram: int | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    steps: int | None = None,
) -> GenerationPlan:
    """The plan of these parts, and of the DiT whether among them or not; ``lengths``: tokens of each prompt.

    ``vram`` in bytes; None means no limit. Raises UserError where a part cannot keep to it.
    """
    dit = plan_bundle(manifest, kind, vram=vram, size=size, frames=frames, steps=steps)
    activations = kind.activations(manifest)
    _, height, width = latent_shape(manifest, size, frames)
    made = []
    for name in parts:
        if name == DIT:
            made.append(PartPlan(DIT, dit.peak, dit.how))
        elif name == TEXT:
            peak, longest = text_bytes(manifest, activations, lengths), f"{max(lengths)} tokens"
            what = longest if len(lengths) == 1 else f"{len(lengths)} prompts of at most {longest}"
            made.append(PartPlan(TEXT, peak, f"{what}, two layers' weights at a time"))
        else:
            plan = plan_vae(manifest, activations, _TASKS[name], height, width, vram)
            made.append(PartPlan(name, plan.peak, plan.how))
    return GenerationPlan(tuple(made), dit)
