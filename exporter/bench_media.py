"""``turbotrt bench media``: text encoder and VAE at full size, random weights, beside diffusers and transformers.

Everything stays on the device: what the runtime adds, copies of frames to the host and their bytes, is not in it. An
oracle that is not installed, or a variant that fails, has its reason in place of figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from exporter.checkpoint.vae_names import vae_name
from exporter.models import ModelSpec
from exporter.networks.vae import halves
from exporter.networks.vae.channels_last import ChannelsLast
from exporter.networks.vae.layers import Tape
from exporter.networks.vae.spec import CHUNK, VAES, VaeSpec
from exporter.networks.vae.weights import packed_weights
from exporter.networks.weight_spec import WeightSpec
from exporter.progress import Progress
from plugins.torch_op import torch_dtype

Weights = dict[str, Tensor]
OURS = "ours"  # what the torch backend runs on CUDA; everything else is compared with it


@dataclass(frozen=True)
class Way:
    """One way to run the VAE's functions."""

    name: str
    layout: torch.memory_format = torch.channels_last_3d
    dtype: torch.dtype = torch.bfloat16
    tape: Callable[..., Tape] = ChannelsLast
    compiled: bool = False
    cudnn_benchmark: bool = False

    @property
    def needs_cuda(self) -> bool:
        """A CPU is slow at fp16 and compiles for minutes."""
        return self.compiled or self.dtype == torch.float16


WAYS = (
    Way(OURS),
    Way("ours, cudnn.benchmark", cudnn_benchmark=True),
    Way("ours, fp16", dtype=torch.float16),
    Way("as traced, contiguous", torch.contiguous_format, tape=Tape),
    Way("as traced, channels last", tape=Tape),
    Way("as traced, channels last, torch.compile", tape=Tape, compiled=True),
)


def random_weights(table: Mapping[str, WeightSpec], device: torch.device) -> Weights:
    """Matrices and kernels of deviation 1/√fan-in, norms around 1, small biases."""
    generator, made = torch.Generator(device).manual_seed(0), {}
    for name, spec in table.items():
        values = torch.randn(spec.shape, device=device, generator=generator)
        if "norm" in name or "gamma" in name:
            values = 1 + 0.1 * values
        else:
            values *= 0.1 if name.endswith("bias") else prod(spec.shape[1:]) ** -0.5
        made[name] = values.to(torch_dtype(spec.dtype))
    return made


class Stopwatch:
    """Times functions on a device; ``rows`` are the results, one dictionary each."""

    def __init__(self, device: torch.device, repeats: int, report: Progress) -> None:
        self.device, self.rows = device, list[dict[str, Any]]()
        self._cuda, self._repeats, self._report = device.type == "cuda", repeats, report

    def __call__(self, task: str, name: str, function: Callable[[], Any]) -> Any:
        """What ``function`` gave the first time; its best seconds after that and the peak of memory are a row."""
        row: dict[str, Any] = {"task": task, "name": name}
        self.rows.append(row)
        if self._cuda:
            torch.cuda.empty_cache()
        try:
            row["first_seconds"], result = self._once(function)
            if self._cuda:
                torch.cuda.reset_peak_memory_stats()
            row["seconds"] = min(self._once(function)[0] for _ in range(self._repeats))
            row["peak_bytes"] = torch.cuda.max_memory_allocated() if self._cuda else None
        except Exception as error:  # one variant that fails must not cost the others their figures
            row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            result = None
        said = row.get("failed") or f"{row['seconds']:.3f} s"
        said += f", peak {row['peak_bytes'] / 1e9:.2f} GB" if row.get("peak_bytes") else ""
        self._report.note(f"{task}, {name}: {said}")
        return result

    def _once(self, function: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        started = time.perf_counter()
        result = function()
        self._wait()
        return time.perf_counter() - started, result

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def chunk_loop(
    spec: VaeSpec, order: tuple[halves.Half, halves.Half], chunks: list[Tensor], way: Way, weights: Weights
) -> Tensor:
    """Both halves over all chunks: decoding's latents or encoding's frames in, the other out."""
    run: Any = torch.compile(halves.run, dynamic=False) if way.compiled else halves.run
    height, width = chunks[0].shape[-2:]
    scale = spec.factor if order[0] == "encode_pixels" else 1
    start = {}
    for name, cache in halves.caches(spec, next(half for half in order if half.endswith("latent"))).items():
        shape = 1, cache.channels, cache.frames, height // scale, width // scale
        start[name] = torch.zeros(shape, dtype=way.dtype, device=chunks[0].device).contiguous(memory_format=way.layout)
    held: dict[str, Any] = {half: start if half.endswith("latent") else None for half in order}
    out = []
    for chunk in chunks:
        x = chunk.contiguous(memory_format=way.layout)
        for half in order:
            x, held[half] = run(half, x, held[half], weights, spec, way.tape)
        out.append(x.clamp(-1, 1) if half == "decode_pixels" else x)  # as diffusers does
    return torch.cat(out, 2)


def run_way(
    spec: VaeSpec, order: tuple[halves.Half, halves.Half], chunks: list[Tensor], way: Way, weights: Weights
) -> Callable[[], Tensor]:
    """The loop over weights as this way wants them."""
    if way.compiled:
        # torch.compile keeps eight variants of a function and runs what comes after them uncompiled: a size takes six.
        torch.compiler.reset()
    own = {
        name: w.to(w.dtype if name.endswith(".gamma") else way.dtype).contiguous(
            memory_format=way.layout if w.dim() == 5 else torch.contiguous_format
        )
        for name, w in weights.items()
    }

    def loop() -> Tensor:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=way.cudnn_benchmark):
            return chunk_loop(spec, order, chunks, way, own)

    return loop


def diffusers_vae(spec: VaeSpec, weights: Weights, device: torch.device) -> Any:
    """AutoencoderKLWan in bf16 with these weights. Raises ImportError."""
    import diffusers

    make: Any = diffusers.AutoencoderKLWan
    with torch.device(device):
        model = make(
            base_dim=spec.base, z_dim=spec.latent, dim_mult=list(spec.multipliers), num_res_blocks=spec.residuals
        )
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[vae_name(name, spec)])
    return model


def distance(got: Tensor | None, want: Tensor | None) -> float | None:
    """Relative L2, where both are there."""
    if got is None or want is None:
        return None
    return float((got.float() - want.float()).norm() / want.float().norm())


def bench_vae(model: ModelSpec, sizes: list[tuple[int, int, int]], watch: Stopwatch) -> None:
    """Decode latents (T, H, W) of each size in every way; encode a video of the first size in the one that counts."""
    spec, device = VAES[model.vae], watch.device
    table = {name: weight for half in halves.HALVES for name, weight in packed_weights(spec, half).items()}
    weights = random_weights(table, device)
    generator = torch.Generator(device).manual_seed(1)
    oracle, why = opened(partial(diffusers_vae, spec, weights, device))
    for t, h, w in sizes:
        task = f"VAE decode {spec.factor * w}x{spec.factor * h}x{1 + CHUNK * (t - 1)}"
        z = torch.randn(1, spec.latent, t, h, w, device=device, generator=generator)
        ways = [way for way in WAYS if device.type == "cuda" or not way.needs_cuda]
        order: tuple[halves.Half, halves.Half] = ("decode_latent", "decode_pixels")
        ours = [run_way(spec, order, list(z.split(1, 2)), way, weights) for way in ways]
        theirs = None if oracle is None else partial(_decode, oracle, z.bfloat16())
        named = list(zip((way.name for way in ways), ours, strict=True))
        compare(watch, task, named, "diffusers", theirs, why)
    t, h, w = sizes[0]
    frames, pixels = 1 + CHUNK * (t - 1), (spec.factor * h, spec.factor * w)
    video = torch.zeros(1, 3, frames, *pixels, device=device)
    video[:, :, 0] = 2 * torch.rand(1, 3, *pixels, device=device, generator=generator) - 1
    chunks = [video[:, :, :1], *video[:, :, 1:].split(CHUNK, 2)] if t > 1 else [video]
    order = "encode_pixels", "encode_latent"
    ours = [run_way(spec, order, chunks, way, weights) for way in WAYS[:2]]
    theirs = None if oracle is None else partial(_encode, oracle, video.bfloat16())
    named = list(zip((way.name for way in WAYS), ours, strict=False))
    compare(watch, f"VAE encode {pixels[1]}x{pixels[0]}x{frames}", named, "diffusers", theirs, why)


def opened(make: Callable[[], Any]) -> tuple[Any, str]:
    """An oracle, or None and the reason: it is not installed, or does not fit what else is."""
    try:
        return make(), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _decode(oracle: Any, latents: Tensor) -> Any:
    with torch.no_grad():
        return oracle.decode(latents).sample


def _encode(oracle: Any, frames: Tensor) -> Any:
    with torch.no_grad():
        return oracle.encode(frames).latent_dist.mode()


def compare(
    watch: Stopwatch, task: str, ours: list[tuple[str, Callable[[], Tensor]]], name: str, theirs: Any, why: str
) -> None:
    """Rows of all, with their distance to the oracle's result and the oracle's seconds over theirs."""
    want, row = None, None
    if theirs is None:
        watch.rows.append({"task": task, "name": name, "failed": why})
    else:
        want, row = watch(task, name, theirs), watch.rows[-1]
    for title, function in ours:
        got, own = watch(task, title, function), watch.rows[-1]
        own["distance"] = distance(got, want)
        if row is not None and "seconds" in row and "seconds" in own:
            own["speedup"] = row["seconds"] / own["seconds"]
        del got


def bench_media(
    model: ModelSpec, sizes: list[tuple[int, int, int]], device: torch.device, repeats: int, report: Progress
) -> dict[str, Any]:
    """All figures, as JSON takes them."""
    from exporter.bench_text import bench_text

    watch = Stopwatch(device, repeats, report)
    bench_vae(model, sizes, watch)
    bench_text(model, watch)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"model": model.name, "device": name, "torch": torch.__version__, "repeats": repeats, "rows": watch.rows}


def lines(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of the table: task, name, seconds, peak GB, times faster than the oracle, distance to it."""
    for row in found["rows"]:
        if "failed" in row:
            yield row["task"], row["name"], row["failed"], "–", "–", "–"
            continue
        peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        faster = f"{row['speedup']:.2f}×" if "speedup" in row else "–"
        far = "–" if row.get("distance") is None else f"{row['distance']:.1e}"
        yield row["task"], row["name"], f"{row['seconds']:.3f}", peak, faster, far
