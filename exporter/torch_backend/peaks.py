"""What stages allocate at their peak, kept for the next process: following them takes seconds, most of it imports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import msgspec
import torch

from exporter.sources import sources_hash
from plugins.user_cache import cached, keep
from runtime.bundle import Manifest, StageEntry
from runtime.dims import Sizes

_KIND = "peaks"  # of the user's cache
_MAX_RECORD = 64  # bytes: a number


def kept_peak(manifest: Manifest, stage: StageEntry, sizes: Sizes, where: str, follow: Callable[[], int]) -> int:
    """Bytes of a stage at these sizes on a device (``where`` names its kind), found by ``follow`` where not known.

    They depend on the stage's own tensors, on how the DiT's attention and Linears run, on torch and on our sources.
    """
    tensors = [msgspec.json.encode(part).decode() for part in (stage.inputs, stage.outputs, manifest.sampler)]
    facts = [stage.name, *tensors, manifest.text_linear, sorted(sizes.items()), where]
    basis = json.dumps([*facts, torch.__version__, sources_hash()])
    key = hashlib.sha256(basis.encode()).hexdigest()
    if (data := cached(_KIND, key, _MAX_RECORD)) is not None and data.isdigit():
        return int(data)
    found = follow()
    keep(_KIND, key, str(found).encode())
    return found
