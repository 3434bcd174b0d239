"""``turbotrt plan``: what a run would keep in device memory. It works on the base install, without torch."""

from __future__ import annotations

import json
from typing import Any

from exporter.cli.options import (
    BackendOption,
    BundleOption,
    FramesOption,
    JsonOption,
    SizeOption,
    StepsOption,
    VramOption,
    parse_frames,
    parse_size,
)
from exporter.terminal import say


def plan(
    bundle: BundleOption,
    vram: VramOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    steps: StepsOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say what a run would keep in device memory and what it would stream, without loading anything.

    Needs neither a GPU nor weights; --backend torch plans for the device here. Without --vram: everything resident.
    Text encoder, DiT and VAE run one after the other, so that the largest part counts.

    Example: turbotrt plan --bundle engines/wan2.1-14b-720p-rtx5090 --vram 12GB
    """
    from runtime.backends.registry import backend_kind
    from runtime.bundle import load_manifest
    from runtime.byte_sizes import gigabytes, parse_bytes
    from runtime.media.parts.plan import bundle_parts, plan_parts

    manifest, kind = load_manifest(bundle), backend_kind(backend)
    budget = None if vram is None else parse_bytes(vram)
    parts = bundle_parts(manifest)
    asked: dict[str, Any] = {"vram": budget, "size": parse_size(size), "frames": parse_frames(frames), "steps": steps}
    made = plan_parts(manifest, kind, parts, **asked)
    if as_json:
        listed = [{"part": part.name, "peak_bytes": part.peak, "how": part.how} for part in made.parts]
        say(json.dumps({**made.dit.plain(), "parts": listed, "source": kind.source}, indent=2))
        return
    for line in made.lines():
        say(line)
    say(f"The DiT: {made.dit.lines()[0]}")
    for line in made.dit.lines()[1:]:
        say(line)
    say(f"  smallest budget that works: {gigabytes(made.dit.smallest)}; the CUDA context comes on top")
    say(f"  by {kind.source}")
