"""``turbotrt bench vae``: where the VAE's time goes, by layer, beside what memory and tensor cores allow.

One chunk that follows another, decoded on the device as the torch backend does. The limits are this device's own: the
bandwidth of a large copy and the rate of a large bf16 product, both measured in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from exporter.bench.synthetic import random_weights
from exporter.models import ModelSpec
from exporter.networks.vae import halves
from exporter.networks.vae.channels_last import FORMAT
from exporter.networks.vae.hopper_tape import tape_for
from exporter.networks.vae.layers import Tape, Weights
from exporter.networks.vae.spec import CHUNK, VAES, VaeSpec
from exporter.networks.vae.weights import packed_weights
from plugins.torch_op import device_sm
from runtime.report import Report

_HALVES: tuple[halves.Half, halves.Half] = ("decode_latent", "decode_pixels")
_TIMED = ("convolve", "norm_convolve", "norm_convolve_onto", "convolve_time", "by_frame")
_REST = "attention, shortcuts, conversions"
_SLEEP_CYCLES = 100_000_000  # about 50 ms: the host enqueues a whole chunk meanwhile, so that no launch is waited for
_LARGE, _SMALL = 8192, 512  # sides of the product by which the tensor cores' rate is measured, on a GPU and a CPU


@dataclass(frozen=True)
class Ceilings:
    """What the device gives: 10⁹ bytes a second, read and written, and 10¹² operations a second in bf16."""

    bandwidth: float
    rate: float

    def ms(self, nbytes: int, operations: int) -> float:
        return max(nbytes / self.bandwidth / 1e6, operations / self.rate / 1e9)


class Clock:
    """Marks in the order of the device's work."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, start: Any, end: Any) -> float:
        if not self._cuda:
            return float(end - start) * 1e3
        end.synchronize()
        return float(start.elapsed_time(end))

    def head_start(self) -> None:
        """Let what is enqueued next wait, so that the device never waits for the host."""
        if self._cuda:
            torch.cuda._sleep(_SLEEP_CYCLES)


@dataclass(frozen=True)
class Call:
    """One layer's convolution with what is fused to it; ``nbytes`` counts each tensor once."""

    title: str
    nbytes: int
    operations: int
    start: Any
    end: Any


def watched(kind: type[Tape], clock: Clock, calls: list[Call]) -> type[Tape]:
    """``kind``, whose convolutions are noted in ``calls``."""

    def around(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(self: Any, *args: Any, **options: Any) -> Tensor:
            if self.inside:
                return method(self, *args, **options)
            self.inside = True
            start = clock.mark()
            out = method(self, *args, **options)
            self.inside = False
            x = next(arg for arg in args if isinstance(arg, Tensor))
            name = next(arg for arg in args if isinstance(arg, str))
            weights = next(arg for arg in args if isinstance(arg, dict))
            onto = method.__name__ == "norm_convolve_onto"
            calls.append(_call(x, out, weights[f"{name}.weight"], self.kept.get(name), onto, start, clock.mark()))
            return out

        return run

    return type("Watched", (kind,), {"inside": False} | {name: around(getattr(kind, name)) for name in _TIMED})


def _call(x: Tensor, out: Tensor, weight: Tensor, kept: Tensor | None, onto: bool, start: Any, end: Any) -> Call:
    c, t, h, w = x.shape[1:]
    up = out.shape[-1] == 2 * w
    kernel = "×".join(map(str, weight.shape[2:]))
    title = f"{kernel}{', upsampled' if up else ''}{', added' if onto else ''}: {t}×{h}×{w}, {c} → {out.shape[1]}"
    operations = 2 * out.numel() * weight[0].numel()
    if up:  # nearest: of nine taps four meet different positions
        operations = operations * 4 // 9
    moved = x.numel() + out.numel() * (2 if onto else 1) + weight.numel() + (0 if kept is None else 2 * kept.numel())
    return Call(title, moved * x.element_size(), operations, start, end)


def layer_rows(
    spec: VaeSpec, height: int, width: int, weights: Weights, device: torch.device, repeats: int, ceilings: Ceilings
) -> list[dict[str, Any]]:
    """Rows of latents ``height`` × ``width``: calls of the same shape together, in order; medians of ``repeats``."""
    clock, calls = Clock(device), list[Call]()
    kind: Any = watched(tape_for(device_sm(device) if device.type == "cuda" else None), clock, calls)
    z = torch.randn(1, spec.latent, 1, height, width, device=device)
    held: dict[str, Any] = dict.fromkeys(_HALVES)
    held["decode_latent"] = {
        name: torch.zeros(1, cache.channels, cache.frames, height, width, device=device, dtype=torch.bfloat16)
        for name, cache in halves.caches(spec, "decode_latent").items()
    }

    def chunk() -> None:
        x = z.contiguous(memory_format=FORMAT)
        with torch.no_grad():
            for half in _HALVES:
                x, held[half] = halves.run(half, x, held[half], weights, spec, kind)

    for _ in range(3):  # the first chunk has another graph
        chunk()
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        calls.clear()
        clock.head_start()
        start = clock.mark()
        chunk()
        whole, spent = clock.ms(start, clock.mark()), dict[str, float]()
        for call in calls:
            spent[call.title] = spent.get(call.title, 0.0) + clock.ms(call.start, call.end)
        for title, ms in {**spent, _REST: whole - sum(spent.values()), "a chunk": whole}.items():
            times.setdefault(title, []).append(ms)
    return [_row(title, [c for c in calls if c.title == title], median(ms), ceilings) for title, ms in times.items()]


def _row(title: str, calls: list[Call], ms: float, ceilings: Ceilings) -> dict[str, Any]:
    found: dict[str, Any] = {"layer": title, "ms": ms}
    if calls:
        found |= {"calls": len(calls), "bytes": sum(c.nbytes for c in calls)}
        found |= {"operations": sum(c.operations for c in calls)}
        found["limit_ms"] = sum(ceilings.ms(c.nbytes, c.operations) for c in calls)
    return found


def measured_ceilings(device: torch.device) -> Ceilings:
    """Of a copy and a product of random data."""
    clock, side = Clock(device), _LARGE if device.type == "cuda" else _SMALL
    a = torch.randn(side, side, device=device).bfloat16()
    b, source = a.t().contiguous(), torch.empty(side * side * 8, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = _best(clock, lambda: target.copy_(source))
    multiplied = _best(clock, lambda: torch.mm(a, b))
    return Ceilings(2 * source.numel() / copied / 1e6, 2 * side**3 / multiplied / 1e9)


def _best(clock: Clock, function: Callable[[], object]) -> float:
    found = []
    for _ in range(10):
        start = clock.mark()
        function()
        found.append(clock.ms(start, clock.mark()))
    return min(found)


def bench_layers(
    model: ModelSpec, sizes: list[tuple[int, int]], device: torch.device, repeats: int, report: Report
) -> dict[str, Any]:
    """All figures of latents (H, W) of each size, as JSON takes them."""
    spec, ceilings = VAES[model.vae], measured_ceilings(device)
    table = {name: weight for half in _HALVES for name, weight in packed_weights(spec, half).items()}
    weights = random_weights(table, 0, str(device))
    run = partial(layer_rows, spec, weights=weights, device=device, repeats=repeats, ceilings=ceilings)
    found: dict[str, Any] = {"model": model.name, "torch": torch.__version__, "repeats": repeats}
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found |= {"bandwidth_gb_s": ceilings.bandwidth, "bf16_tflops": ceilings.rate, "sizes": []}
    for height, width in sizes:
        title = f"{spec.factor * width}x{spec.factor * height}, {CHUNK} frames"
        rows = run(height, width)
        found["sizes"].append({"size": title, "rows": rows})
        report.note(f"VAE decode {title}: {rows[-1]['ms']:.1f} ms")
    return found


def lines(rows: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of a size's table: layer, calls, GB, 10¹² operations, ms at the limit, ms, times the limit."""
    for row in rows:
        if "calls" not in row:
            yield row["layer"], "", "", "", "", f"{row['ms']:.2f}", ""
            continue
        counts = str(row["calls"]), f"{row['bytes'] / 1e9:.2f}", f"{row['operations'] / 1e12:.2f}"
        yield row["layer"], *counts, f"{row['limit_ms']:.2f}", f"{row['ms']:.2f}", f"{row['ms'] / row['limit_ms']:.2f}"
