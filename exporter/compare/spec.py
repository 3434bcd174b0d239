"""CompareSpec: everything one comparison is asked for; and Row: one thing it found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from exporter.loras import NO_ARGUMENTS, LoraArguments
from plugins.errors import UserError
from runtime.media.decoders import DecoderName

if TYPE_CHECKING:
    from torch import Tensor

Runner = Literal["fp32", "quantized", "onnx", "plans", "tensorrt"]
RUNNERS: tuple[Runner, ...] = get_args(Runner)
Level = Literal["op", "block", "step", "free", "frame", "video"]
#: What each level is, as reports say it.
LEVELS: dict[str, str] = {
    "op": "every op of a block, each on what the candidate fed it",
    "block": "every block, each on the reference's x",
    "step": "every step, each from the reference's latents",
    "free": "every step, each from the runner's own latents",
    "frame": "the final latents, frame by frame",
    "video": "the video that the decoder makes of the final latents, frame by frame",
}


def runner_named(name: str) -> Runner:
    """The runner of that name. Raises UserError listing them."""
    for runner in RUNNERS:
        if runner == name:
            return runner
    raise UserError("This cannot be compared.", expected=", ".join(RUNNERS), got=name)


@dataclass(frozen=True)
class CompareSpec:
    """One bundle against its checkpoint (None: against itself only). ``block_step`` counts from 0.

    None is the model's own steps, size and frames; ``embeds`` and ``condition`` are files (None: random);
    ``loras`` are merged into the checkpoint.
    ``video`` None decodes the final latents, by ``vae_decoder``, where that is no long work.
    """

    bundle: Path
    checkpoint: str | None
    against: tuple[Runner, ...] = RUNNERS
    steps: int | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    seed: int = 0
    embeds: Path | None = None
    condition: Path | None = None
    ode: bool = False
    block_step: int = 0
    same_blocks: bool = False
    video: bool | None = None
    vae_decoder: DecoderName = "full"
    sweep: tuple[int, ...] = ()
    loras: LoraArguments = NO_ARGUMENTS
    out: Path = Path("report")


def within(value: float, bound: float | None, *, higher: bool) -> bool:
    """Whether a metric is at most its bound, at least if ``higher``; without a bound whatever is a number is."""
    if bound is None:
        return not math.isnan(value)
    return value >= bound if higher else value <= bound


@dataclass(frozen=True)
class Row:
    """One measured distance. ``place`` is the op, block, step or frame; ``bound`` is on the first of ``metrics``."""

    level: Level
    candidate: str
    reference: str
    place: str
    layer: int | None
    metrics: dict[str, float]
    bound: float | None
    higher_is_better: bool = False

    @property
    def value(self) -> float:
        return next(iter(self.metrics.values()))

    @property
    def passed(self) -> bool:
        return within(self.value, self.bound, higher=self.higher_is_better)

    @property
    def badness(self) -> float:
        """How far over the bound: 1 is at it, above 1 is over it, NaN counts as infinite. PSNR: in amplitude."""
        if math.isnan(self.value):
            return math.inf
        if self.bound is None:
            return 0.0
        if self.higher_is_better:
            return math.inf if self.value == -math.inf else 10 ** ((self.bound - self.value) / 20)
        return self.value / self.bound


@dataclass
class Comparison:
    """All rows, what was left out and why, and what a report shows beside them.

    Runner → its final latent frames fp32 [16, H, W], and its video's frames uint8 [H, W, 3].
    """

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    frames: dict[str, list[Tensor]] = field(default_factory=dict)
    video: dict[str, list[Tensor]] = field(default_factory=dict)
    accumulated: dict[str, dict[str, float]] = field(default_factory=dict)
    rounding: dict[str, dict[str, float]] = field(default_factory=dict)
    inspected: int | None = None
    sweep: Sweep | None = None

    @property
    def offenders(self) -> list[Row]:
        """Rows over their bounds, the worst first."""
        return sorted((row for row in self.rows if not row.passed), key=lambda row: -row.badness)

    @property
    def passed(self) -> bool:
        return not self.offenders


@dataclass(frozen=True)
class SweepPoint:
    """One share of kept key blocks: distance of the final latents, and seconds of one step's blocks."""

    topk_milli: int
    relative_l2: float
    psnr_db: float
    ssim: float
    seconds: float | None


@dataclass(frozen=True)
class Sweep:
    """Quality against time. ``estimated``: the seconds are computed for ``device``, else they were measured on it.

    ``untimed`` says why there are no seconds.
    """

    points: tuple[SweepPoint, ...]
    device: str
    estimated: bool
    untimed: str | None = None

    @property
    def time_label(self) -> str:
        """What a table or an axis of the seconds is called."""
        return f"a step's blocks, {'ESTIMATED for' if self.estimated else 'measured on'} {self.device}"
