"""The parts "generate", "cold" and "warm": whole generations by the runtime's pipeline, against shipped latents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from exporter.selftest.alone import relative_l2
from exporter.selftest.references import reference
from exporter.selftest.rows import Case
from exporter.selftest.step import Finding, Setting, Step, backend_of, variant_of
from exporter.selftest.variants import SIZES, Variant
from runtime.backends.kind import BackendKind
from runtime.inputs import TEXT_DIM
from runtime.numerics import Array
from runtime.pipeline import Pipeline
from runtime.video_shape import latents_of

#: How far the latents may be from the reference's after all steps, each from its own: INT8 Linears in place of bf16 are
#: 1.6e-2 apart on these weights, dense attention in place of sparse 4e-1.
LATENTS = 5e-2
SEED = 3
_ROWS = 40  # of the text embeddings
Video = tuple[int, int, int]  # width, height, frames


def steps(setting: Setting, case: Case) -> Iterator[Step]:
    """All weights resident, layers streamed, and the same by torch where that is here."""
    made = Generations(setting, case)
    yield Step("resident", made.check_resident)
    yield Step("streamed", made.check_streamed)
    if case.host != "torch" and find_spec("torch") is not None:
        yield Step("against torch", made.check_against_torch)


def cold(setting: Setting, case: Case) -> Iterator[Step]:
    """A first start: RTX compiles what the engines hold."""
    yield Step("cold start", partial(_start, setting, case, warm=False))


def warm(setting: Setting, case: Case) -> Iterator[Step]:
    """A start in another process, with what the first one compiled."""
    yield Step("warm start", partial(_start, setting, case, warm=True))


class Generations:
    """One bundle's generations on one backend."""

    def __init__(self, setting: Setting, case: Case) -> None:
        self._variant, self._kind = variant_of(case), backend_of(case)
        self._folder = setting.bundle(self._variant)
        self._videos = SIZES[:1] if setting.quick else SIZES

    @cached_property
    def _first(self) -> Array:
        """The first video's latents with all weights resident."""
        with self._pipeline(self._kind) as pipe:
            return generate(pipe, self._variant, self._videos[0])

    def _pipeline(self, kind: BackendKind, vram: int | None = None) -> Pipeline:
        width, height, frames = self._videos[0]
        return Pipeline.load(self._folder, backend=kind, vram=vram, size=(width, height), frames=frames)

    def check_resident(self) -> Iterator[Finding]:
        """Every size, and the first once more: what another size leaves behind must not show."""
        with self._pipeline(self._kind) as pipe:
            for video in self._videos:
                began = time.monotonic()
                got = generate(pipe, self._variant, video)
                yield self._compared(f"resident, {_said(video)}", video, got, time.monotonic() - began)
                if video == self._videos[0]:
                    self._first = got
            again = generate(pipe, self._variant, self._videos[0])
        yield _same(f"resident, {_said(self._videos[0])} again", again, self._first, "the first time")

    def check_streamed(self) -> Iterator[Finding]:
        """As few layers resident as can be; the latents are those of resident ones, bit for bit."""
        with self._pipeline(self._kind) as pipe:
            least = pipe.placement.smallest
        with self._pipeline(self._kind, least) as pipe:
            streamed, got = pipe.placement.streamed, generate(pipe, self._variant, self._videos[0])
        if not streamed:
            raise AssertionError(f"no layer streamed within {least:,} bytes")
        name = f"streamed, {_said(self._videos[0])}"
        yield self._compared(name, self._videos[0], got, None)
        yield _same(f"{name}, as resident", got, self._first, "with all layers resident")

    def check_against_torch(self) -> Iterator[Finding]:
        """The torch backend on the device that torch sees: the same kernels on a GPU, oracles on the CPU."""
        from exporter.torch_backend.backend import TORCH

        with self._pipeline(TORCH) as pipe:
            want, device = generate(pipe, self._variant, self._videos[0]), pipe.runner.device.name
        error, bound = relative_l2(self._first, want), LATENTS
        yield Finding(f"against torch on {device}", tensor="latents", error=error, bound=bound)

    def _compared(self, name: str, video: Video, got: Array, seconds: float | None) -> Finding:
        want = reference(self._variant, video)
        error = relative_l2(got[: len(want)], want)
        figures = {} if seconds is None else {"seconds": seconds}
        return Finding(name, tensor="latents", error=error, bound=LATENTS, figures=figures)


def generate(pipe: Pipeline, variant: Variant, video: Video) -> Array:
    """The latents that the references are of: random embeddings, and for image-to-video a random image's latents."""
    width, height, frames = video
    random = np.random.Generator(np.random.Philox(SEED))
    text = random.standard_normal((_ROWS, TEXT_DIM), dtype=np.float32)
    given: dict[str, Any] = {"size": (width, height), "frames": frames, "seed": SEED}
    if variant.model.image_to_video:
        given["condition"] = random.standard_normal((16, *latents_of((width, height), frames)), dtype=np.float32)
    return pipe(text, **given)


def _said(video: Video) -> str:
    return "×".join(map(str, video))


def _same(name: str, got: Array, want: Array, when: str) -> Finding:
    """A finding that passes where the bits are equal."""
    off = int((got.view(np.uint32) != want.view(np.uint32)).sum())
    detail = f"{off} of {got.size} values differ from those {when}" if off else ""
    error = float("inf") if off and relative_l2(got, want) == 0 else relative_l2(got, want)
    return Finding(name, tensor="latents", error=error, bound=0.0, detail=detail)


def _start(setting: Setting, case: Case, *, warm: bool) -> Iterator[Finding]:
    variant = variant_of(case)
    folder = setting.bundle(variant)
    before = _caches(folder)
    if warm and not before:
        raise AssertionError("the cold start left no cache of kernels")
    if not warm:
        for path in before:
            path.unlink()
    times, (width, height, frames) = [time.monotonic()], SIZES[0]
    with Pipeline.load(folder, backend=backend_of(case), size=(width, height), frames=frames) as pipe:
        times.append(time.monotonic())
        got = generate(pipe, variant, SIZES[0])
        times.append(time.monotonic())
    after = _caches(folder)
    if not after:
        raise AssertionError("no cache of kernels was written")
    kept = warm and before == after
    figures = {"load_seconds": times[1] - times[0], "first_seconds": times[2] - times[1]}
    figures["cache_bytes"] = float(sum(path.stat().st_size for path in after))
    error = relative_l2(got[: len(want := reference(variant, SIZES[0]))], want)
    name, detail = "warm start" if warm else "cold start", "" if kept or not warm else "compiled anew"
    yield Finding(name, tensor="latents", error=error, bound=LATENTS, figures=figures, detail=detail)


def _caches(folder: Path) -> dict[Path, int]:
    """The files of compiled kernels, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*.jitcache"))}
