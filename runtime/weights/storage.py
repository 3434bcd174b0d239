"""The DiT's plan made real: slots in device memory, the experts' files, and the stream between the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plugins.errors import UserError
from plugins.interrupts import Ending
from runtime.backends.protocol import Device, DeviceTensor
from runtime.bundle import Manifest
from runtime.layout import Layout, weight_layout
from runtime.report import Report
from runtime.weights.file import WeightsFile
from runtime.weights.memory_plan import MemoryPlan
from runtime.weights.slots import Slots
from runtime.weights.streaming import Kept, Unit, WeightStream
from runtime.weights.upload import Staging, Stored

STAGES = ("embed", "block", "head")


def layouts(manifest: Manifest) -> dict[str, Layout]:
    """The weight slot of each stage."""
    return {stage: weight_layout(manifest.stage(stage)) for stage in STAGES}


class Storage:
    """All weight memory of a pipeline. Raises UserError where a file does not hold what the engines take.

    ``close`` frees all memory, once. ``files`` are the caller's: those of experts that it lacks are opened into it, and
    stay open, so that weights that come again are of the same file. ``kept``: page-locked memory for these.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        plan: MemoryPlan,
        device: Device,
        staging: Staging,
        files: dict[str, WeightsFile],
        kept: Kept | None = None,
    ) -> None:
        self.plan = plan
        self._layouts = layouts(manifest)
        self._files = files
        slots: list[Slots] = []
        self.close = Ending(self, _close, slots, atexit=False)  # a process's end frees all by itself
        try:
            for expert in plan.experts:
                if expert not in files:
                    files[expert] = WeightsFile(folder / manifest.weights[expert])
                self._check(expert)
            every = [unit for expert in plan.experts for unit in self.one_pass(expert)]
            slots.append(Slots(device, staging, plan, every, _Finder(plan, self._layouts, self._files), kept))
            self._slots = slots[0]
        except BaseException:
            self.close()
            raise

    def _check(self, expert: str) -> None:
        prefixes = [("embed", ""), *(("block", f"blocks.{n}.") for n in range(self.plan.layers)), ("head", "")]
        for stage, prefix in prefixes:
            if problem := self._files[expert].check(prefix, self._layouts[stage]):
                self._files.pop(expert).close()  # the next try finds what was packed meanwhile
                raise UserError(f"The weights are not of this bundle: {problem}.", remedy="pack the weights again")

    @property
    def stream(self) -> WeightStream:
        return self._slots.stream

    @property
    def copied_bytes(self) -> int:
        """Bytes brought to the device so far."""
        return self.stream.copied_bytes

    @property
    def files(self) -> list[WeightsFile]:
        """The experts' files."""
        return [self._files[expert] for expert in self.plan.experts]

    def one_pass(self, expert: str) -> list[Unit]:
        """The units of one expert in the order of a step."""
        return [(expert, unit) for unit in range(self.plan.layers + 2)]

    def prefetch(self, expert: str) -> None:
        """Start to fill the slots with one expert's weights, behind what runs; streamed layers as far as they go."""
        self._slots.prefetch(self.one_pass(expert))

    def preload(self, expert: str, report: Report) -> None:
        """``prefetch``, done on return."""
        with report.stage(f"load {self._files[expert].path.name}") as update:
            self._slots.prefetch(self.one_pass(expert))
            self._slots.finish(update)

    def begin(self, uses: Sequence[Unit]) -> None:
        """Start the copies that these uses need."""
        self._slots.begin(uses)

    def stage_of(self, unit: Unit) -> str:
        """The stage that a unit is run by."""
        return _stage_of(unit, self.plan)

    def weights(self, use: int, unit: Unit) -> dict[str, DeviceTensor]:
        """The weights of a use by the engine's names, in place by the time its work begins."""
        return self._slots.weights(use, unit)

    def bad_weight(self) -> str | None:
        """The first tensor of the files that holds NaN or infinity; they are read once more to find it."""
        found = (name for file in self.files for name in file.tensors if not file.is_finite(name))
        return next(found, None)


class _Finder:
    """Where a unit's bytes lie. It knows nothing of the storage, so that dropping that gives its memory back."""

    def __init__(self, plan: MemoryPlan, all_layouts: dict[str, Layout], files: dict[str, WeightsFile]) -> None:
        self._plan, self._layouts, self._files = plan, all_layouts, files

    def __call__(self, unit: Unit) -> Stored:
        stage = _stage_of(unit, self._plan)
        return Stored(self._files[unit[0]], f"blocks.{unit[1] - 1}." if stage == "block" else "", self._layouts[stage])


def _stage_of(unit: Unit, plan: MemoryPlan) -> str:
    return "embed" if unit[1] == 0 else "head" if unit[1] > plan.layers else "block"


def _close(slots: list[Slots]) -> None:
    for one in slots:
        one.close()
