"""``turbotrt bench generate``: what a user waits for, from a prompt to a video, with random weights of full size.

Rows of the command line are whole processes, as a shell starts them; the others are one process's third prompt and
later. Every prompt is another one, so that none comes from a cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from exporter.bench.random_bundle import add_media, make_random_bundle
from exporter.models import ModelSpec
from exporter.torch_backend.backend import TORCH
from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.file_checks import FileChecks, Verify
from runtime.media.decoders import DecoderName
from runtime.media.parts.times import BACKEND
from runtime.media.video_pipeline import VideoPipeline
from runtime.report import Report, Silent

WARM_UPS = 2  # what is timed is the third prompt of a shell or a process, and those after it
_CLI, _CLI_OURS = "CLI, the whole process", "CLI, less importing torch"
_CLI_REST = "CLI, all but torch, steps and VAE"
_KEPT, _KEPT_REST = "resident, whole", "resident, all but steps and VAE"
_KEPT_TINY, _TINY = "resident, whole, tiny decoder", "tiny decoder, frames in host memory"
_VAE, _SAME, _NEW = "VAE decode, frames in host memory", "verify, unchanged bundle", "verify, new bundle in page cache"

#: (row, model) → seconds that it must take at most, and those that are aimed at.
TARGETS: Mapping[tuple[str, str], tuple[float, float | None]] = {
    (_CLI_REST, "wan2.1-14b-720p"): (3.0, 1.5),
    (_CLI_OURS, "wan2.1-1.3b-480p"): (4.0, 2.8),
    (_KEPT_REST, "wan2.1-14b-720p"): (0.6, 0.3),
    (_KEPT, "wan2.1-1.3b-480p"): (2.4, 1.9),
    (_KEPT_TINY, "wan2.1-1.3b-480p"): (1.4, 1.2),
    (_TINY, "wan2.1-1.3b-480p"): (0.25, 0.12),
    (_TINY, "wan2.1-14b-720p"): (0.55, 0.3),
    (_VAE, "wan2.1-1.3b-480p"): (1.0, 0.75),
    (_VAE, "wan2.1-14b-720p"): (2.4, 1.7),
    (_SAME, "wan2.1-1.3b-480p"): (0.1, None),
    (_SAME, "wan2.1-14b-720p"): (0.1, None),
    (_NEW, "wan2.1-14b-720p"): (4.0, 2.0),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of each run; ``parts``: of the last one, what each part took."""

    name: str
    model: str
    runs: tuple[float, ...]
    parts: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        must, aim = TARGETS.get((self.name, self.model), (None, None))
        figures = {
            "seconds": median(self.runs),
            "runs": list(self.runs),
            "must": must,
            "aim": aim,
            "parts": dict(self.parts),
        }
        return {"row": self.name, "model": self.model, **figures}


def bench_generate(models: Sequence[ModelSpec], repeats: int, folder: Path, report: Report) -> list[dict[str, Any]]:
    """All rows of these models, whose bundles are made in ``folder``, as JSON takes them."""
    rows: list[Row] = []
    shared: dict[str, Path] = {}
    for model in models:
        with report.stage(f"make {model.name} of random weights"):
            bundle = folder / model.name
            manifest = add_media(bundle, make_random_bundle(bundle, model), model, shared)
            shared |= {name: bundle / name for name in manifest.media_weights.values()}
        bench = _Bench(model, bundle, manifest, repeats, report)
        rows += bench.verification()
        rows += bench.resident()
        rows += bench.command_line(median(next(row for row in rows if row.name == _VAE).runs))
    return [row.plain() for row in rows]


@dataclass
class _Bench:
    """One model's rows."""

    model: ModelSpec
    bundle: Path
    manifest: Manifest
    repeats: int
    report: Report
    _asked: int = 0

    def verification(self) -> Iterator[Row]:
        """All weights, hashed by all cores; and known from before."""
        named = [*self.manifest.weights.values(), *self.manifest.media_weights.values()]
        time.sleep(2.1)  # a file is remembered when it has been left alone for two seconds

        def verified(how: Verify) -> None:
            checks = FileChecks(self.bundle, self.manifest, how, Silent())
            try:
                checks.check(named)
            finally:
                checks.close()

        yield self._row(_NEW, lambda: verified("always"), warm_ups=1)
        yield self._row(_SAME, lambda: verified("auto"), warm_ups=1)

    def resident(self) -> Iterator[Row]:
        """One process's pipeline: whole videos, what is neither a step nor the decoder, the decoder alone."""
        rests: list[float] = []
        with VideoPipeline.load(self.bundle, backend=TORCH) as video:
            shape = self.model.latent_shape(self.model.size)
            latents = np.random.default_rng(0).standard_normal((16, *shape), dtype=np.float32)

            def decoded(name: DecoderName) -> None:
                for _ in video.stream(latents, name):
                    pass

            def made(name: DecoderName) -> None:
                video(self._prompt(), self.bundle / "kept.mp4", decoder=name)

            def without_steps(seconds: float) -> None:
                rests.append(seconds - sum(part.seconds for part in video.times if _is_step(part.name)))

            alone = self._row(_VAE, lambda: decoded("full"))
            yield self._row(_TINY, lambda: decoded("tiny"))
            whole = self._row(_KEPT, lambda: made("full"), after=without_steps)
            parts = {part.name: part.seconds for part in video.times}
            yield self._row(_KEPT_TINY, lambda: made("tiny"))
        yield alone
        yield replace(whole, parts=parts)
        yield Row(_KEPT_REST, self.model.name, tuple(rest - median(alone.runs) for rest in rests))

    def command_line(self, vae: float) -> Iterator[Row]:
        """Fresh processes with default options; ``vae``: seconds of the decoder alone."""
        told, ours, rests = self.bundle / "times.json", list[float](), list[float]()
        command = [sys.executable, "-m", "exporter.cli", "generate", "--bundle", str(self.bundle)]
        command += ["--backend", "torch", "--out", str(self.bundle / "told.mp4"), "--times", str(told)]

        def made() -> None:
            done = subprocess.run([*command, "--prompt", self._prompt()], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise UserError("The command line failed.", got=done.stderr[-2000:])

        def rest(seconds: float) -> None:
            took = _told(told)
            ours.append(seconds - took[BACKEND])
            rests.append(ours[-1] - sum(took[name] for name in took if _is_step(name)) - vae)

        whole = self._row(_CLI, made, after=rest)
        yield replace(whole, parts=_told(told))
        yield Row(_CLI_OURS, self.model.name, tuple(ours))
        yield Row(_CLI_REST, self.model.name, tuple(rests))

    def _prompt(self) -> str:
        """Another one of about sixty tokens: the tokenizer knows single letters."""
        self._asked += 1
        return f"a cat with sunglasses rides a surfboard, take {self._asked:05d} of {os.getpid()}"

    def _row(
        self,
        name: str,
        work: Callable[[], None],
        *,
        warm_ups: int = WARM_UPS,
        after: Callable[[float], None] = lambda seconds: None,
    ) -> Row:
        """Runs of some work, after those that do not count; ``after`` hears the seconds of each that does."""
        runs: list[float] = []
        with self.report.stage(f"{self.model.name}: {name}") as update:
            for number in range(warm_ups + self.repeats):
                started = time.perf_counter()
                work()
                seconds = time.perf_counter() - started
                if number >= warm_ups:
                    runs.append(seconds)
                    after(seconds)
                update(number + 1, warm_ups + self.repeats)
        return Row(name, self.model.name, tuple(runs))


def _told(path: Path) -> dict[str, float]:
    """What ``generate --times`` wrote: part → seconds."""
    return {part["name"]: part["seconds"] for part in json.loads(path.read_text())}


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of the table: what, model, median, runs, must, aim."""
    for row in rows:
        runs = ", ".join(f"{seconds:.2f}" for seconds in row["runs"])
        targets = ("–" if row[key] is None else f"{row[key]:g}" for key in ("must", "aim"))
        yield row["row"], row["model"], f"{row['seconds']:.2f}", runs, *targets


def _is_step(name: str) -> bool:
    return name.startswith("step ")
