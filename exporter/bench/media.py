"""``turbotrt bench media``: text encoder and VAE at full size, random weights, beside diffusers and transformers.

Everything stays on the device: what the runtime adds, copies of frames to the host and their bytes, is not in it. An
oracle that is not installed, or a variant that fails, has its reason in place of figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from exporter.bench.stopwatch import Stopwatch
from exporter.bench.vae import bench_vae
from exporter.models import ModelSpec
from runtime.report import Report


def bench_media(
    model: ModelSpec, sizes: list[tuple[int, int, int]], device: torch.device, repeats: int, report: Report
) -> dict[str, Any]:
    """All figures, as JSON takes them."""
    from exporter.bench.text import bench_text

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
