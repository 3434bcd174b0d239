"""One stage on a backend's runner with nothing around it: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.dtypes import DTYPES
from plugins.errors import UserError
from runtime.backends.kind import BackendKind
from runtime.backends.protocol import Device, Memory, Runner, tensors
from runtime.bundle import Manifest, StageEntry
from runtime.dims import Sizes
from runtime.file_checks import FileChecks
from runtime.layout import Layout, layout_of
from runtime.numerics import Array, from_bf16_bits
from runtime.report import Silent

#: A tensor as it lies in memory: of its dtype, or of its bits where numpy has no such dtype (``plugins.dtypes``).
Raw = npt.NDArray[Any]
_POISON = 0xFF  # NaN in every float dtype: what a stage leaves unwritten shows


@contextmanager
def opened(folder: Path, manifest: Manifest, kind: BackendKind) -> Iterator[Runner]:
    """The bundle's stages on its device, checked as a pipeline checks them. Raises UserError."""
    files = [name for component in manifest.components for name in kind.files(manifest, component)]
    if (reason := kind.check(folder, manifest)) is not None:
        raise UserError(reason)
    checks = FileChecks(folder, manifest, "always", Silent())
    checks.check(files)
    checks.close()
    runner = kind.open(folder, manifest, Silent())
    try:
        with runner.device.current():
            try:
                yield runner
            finally:
                runner.close()
    finally:
        runner.device.close()


def run_alone(runner: Runner, stage: StageEntry, sizes: Sizes, inputs: Mapping[str, Raw]) -> dict[str, Raw]:
    """What a stage gives for these inputs, weights among them."""
    taken, given = layout_of({t.name: t for t in stage.inputs}, sizes), layout_of(stage.gives, sizes)
    device, held = runner.device, list[Memory]()
    runner.prepare({stage.name: sizes})
    try:
        for where in (taken, given):
            held.append(device.allocate(max(1, where.nbytes)))
        for name, place in taken.places.items():
            device.upload(held[0], place.offset, _bytes(inputs[name]), "compute")
        device.upload(held[1], 0, np.full(given.nbytes, _POISON, np.uint8), "compute")
        runner.run(stage.name, tensors(held[0], taken), tensors(held[1], given))
        return downloaded(device, held[1], given)
    finally:
        device.finish()
        for memory in held:
            memory.free()
        runner.release()


def downloaded(device: Device, memory: Memory, where: Layout) -> dict[str, Raw]:
    """The tensors of a layout, behind all that the device has to do."""
    raw = np.empty(where.nbytes, np.uint8)
    device.download(memory, 0, raw)
    return {
        name: raw[place.offset : place.offset + place.nbytes].view(DTYPES[place.dtype].numpy).reshape(place.shape)
        for name, place in where.places.items()
    }


def _bytes(array: Raw) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def values(array: Raw, dtype: str) -> Array:
    """A tensor's values in fp32."""
    return from_bf16_bits(array) if dtype == "bf16" else array.astype(np.float32)


def relative_l2(got: Array, want: Array) -> float:
    """‖got − want‖ / ‖want‖, summed in fp64; infinite where anything is no number."""
    difference, wanted = got.astype(np.float64) - want, np.linalg.norm(want.astype(np.float64))
    if not np.isfinite(difference).all():
        return float("inf")
    off = float(np.linalg.norm(difference))
    return off / float(wanted) if wanted else (0.0 if off == 0 else float("inf"))
