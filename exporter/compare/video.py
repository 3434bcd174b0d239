"""The final latents as videos: every runner's through a decoder of the bundle's, one for all, frame by frame."""

from __future__ import annotations

import torch
from polygraphy.comparator import IterationResult, RunResults
from torch import Tensor

from exporter.compare.metrics import FrameDistance, video_distance
from exporter.compare.roster import Roster
from exporter.compare.spec import CompareSpec, Comparison
from exporter.torch_backend.backend import TORCH
from exporter.torch_backend.memory import meta_tensors
from exporter.torch_backend.runner import run_stage, stage_functions
from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.checks import export_with
from runtime.media.decoders import DECODERS, DecoderFacts
from runtime.media.video_pipeline import VideoPipeline
from runtime.numerics import to_latents
from runtime.report import Report

VIDEO = "video"
CPU_OPERATIONS = 2e12  # what a CPU is given unasked: about a minute of two cores


def why_no_video(spec: CompareSpec, roster: Roster) -> str | None:
    """Why the latents are not decoded, or None. Raises UserError where it was asked for and cannot be."""
    if spec.video is False:
        return "was not asked for (--no-video)"
    facts = DECODERS[spec.vae_decoder]
    if facts.component not in roster.manifest.media_weights:
        remedy = export_with(facts.component)
        if spec.video:
            raise UserError(f"--video needs the {facts.title}, and the bundle holds no weights of one.", remedy=remedy)
        return f"needs the {facts.title}, and the bundle holds no weights of one ({remedy})"
    if spec.video or torch.cuda.is_available():
        return None
    needed = len(roster.machines) * decode_operations(roster.manifest, roster.scene.shape, facts)
    if needed <= CPU_OPERATIONS:
        return None
    return (
        f"would take the {facts.title} {needed / 1e12:,.0f}·10¹² operations on this CPU, and no more than "
        f"{CPU_OPERATIONS / 1e12:g}·10¹² are done unasked (--video asks, fewer --frames help)"
    )


def decode_operations(manifest: Manifest, shape: tuple[int, int, int], decoder: DecoderFacts) -> int:
    """Multiplications and additions of decoding latents of (T, H, W), counted by torch on meta tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    count, height, width = shape
    functions, total = stage_functions(manifest), 0
    latent = {} if decoder.latent is None else {decoder.latent: count}
    for name, times in {**latent, decoder.first: 1, decoder.following: count - 1}.items():
        stage = manifest.stage(name)
        inputs, outputs = meta_tensors(stage, {"H": height, "W": width})
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            run_stage(stage, functions[name], inputs, outputs)
        total += times * counted.get_total_flops()
    return total


def decode(roster: Roster, spec: CompareSpec, free: RunResults, found: Comparison, progress: Report) -> RunResults:
    """Every runner's last tokens as frames uint8 [H, W, 3]; a runner whose latents are not finite is noted, not shown.

    Raises UserError where the decoder's files are damaged or no tile fits the memory.
    """
    tokens = {name: free[name][-1]["tokens"] for name in roster.machines}
    finite = [name for name, last in tokens.items() if bool(torch.isfinite(last).all())]
    found.notes += [f"{name} gives no video: its latents are not finite." for name in tokens if name not in finite]
    latents = [to_latents(tokens[name].float().numpy(), roster.scene.shape) for name in finite]
    results = RunResults()
    with (
        progress.stage(f"decode by the {DECODERS[spec.vae_decoder].title}") as update,
        VideoPipeline.load(spec.bundle, backend=TORCH, report=progress) as pipeline,
    ):
        for name, one in zip(finite, latents, strict=True):
            video = pipeline.decode(one, spec.vae_decoder)
            images = [image.clone() for image in torch.from_numpy(video)]  # JSON takes a view's whole storage
            found.video[name] = images
            named = {f"frame {index:03d}": image for index, image in enumerate(images)}
            results.append((name, [IterationResult(named, 0.0, name)]))
            update(len(found.video), len(finite))
    return results


def measure(got: Tensor, want: Tensor) -> FrameDistance:
    """``video_distance``, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return video_distance(got.to(device), want.to(device))
