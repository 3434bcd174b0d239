"""A plan made real: slots in device memory, the experts' files, and the stream that fills the one from the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plugins.errors import UserError
from plugins.interrupts import Ending
from runtime.backends.protocol import Device, DeviceTensor, Memory, tensors
from runtime.bundle import Manifest
from runtime.layout import Layout, weight_layout
from runtime.report import Report
from runtime.weights.file import WeightsFile
from runtime.weights.memory_plan import MemoryPlan
from runtime.weights.streaming import Slot, Unit, WeightStream, schedule, slots_of
from runtime.weights.upload import Staging

STAGES = ("embed", "block", "head")


def layouts(manifest: Manifest) -> dict[str, Layout]:
    """The weight slot of each stage."""
    return {stage: weight_layout(manifest.stage(stage)) for stage in STAGES}


class Storage:
    """All weight memory of a pipeline. Raises UserError where a file does not hold what the engines take.

    ``close`` frees all memory and closes the files, once; copies that an interruption left under way end first.
    """

    def __init__(self, folder: Path, manifest: Manifest, plan: MemoryPlan, device: Device) -> None:
        self.plan = plan
        self._layouts = layouts(manifest)
        self._files: dict[str, WeightsFile] = {}
        memories: dict[Slot, Memory] = {}
        self._staging = Staging(device, self._files, self._layouts, plan.layers)
        self.stream = WeightStream(device, self._staging, memories)
        held = device, self.stream, self._staging, memories, self._files
        self.close = Ending(self, _close, *held, atexit=False)  # a process's end frees all by itself
        try:
            for expert in plan.experts:
                self._files[expert] = WeightsFile(folder / manifest.weights[expert])
                self._check(expert)
            for slot, stage in slots_of(plan).items():
                memories[slot] = device.allocate(self._layouts[stage].nbytes)
            device.finish()  # torch's allocator may hand out what the compute queue still reads, and copies do not wait
        except BaseException:
            self.close()
            raise

    def _check(self, expert: str) -> None:
        prefixes = [("embed", ""), *(("block", f"blocks.{n}.") for n in range(self.plan.layers)), ("head", "")]
        for stage, prefix in prefixes:
            if problem := self._files[expert].check(prefix, self._layouts[stage]):
                raise UserError(f"The weights are not of this bundle: {problem}.", remedy="pack the weights again")

    @property
    def copied_bytes(self) -> int:
        """Bytes brought to the device so far."""
        return self._staging.copied_bytes

    @property
    def files(self) -> list[WeightsFile]:
        """The experts' files."""
        return list(self._files.values())

    def one_pass(self, expert: str) -> list[Unit]:
        """The units of one expert in the order of a step."""
        return [(expert, unit) for unit in range(self.plan.layers + 2)]

    def preload(self, expert: str, report: Report) -> None:
        """Fill the slots with one expert's weights; streamed layers as far as there is room."""
        uses = self.one_pass(expert)
        planned = schedule(uses, self.plan, self.stream.held)
        copies = tuple(copy for copy in planned.copies if copy.after_use is None)
        total = sum(self._layouts[self.stage_of(copy.unit)].nbytes for copy in copies)
        before = self.copied_bytes
        with report.stage(f"load {self._files[expert].path.name}") as update:
            self.stream.start(planned.only(copies), lambda: update(self.copied_bytes - before, total))
            self.stream.finish()

    def begin(self, uses: Sequence[Unit]) -> None:
        """Start the copies that these uses need."""
        self.stream.start(schedule(uses, self.plan, self.stream.held))

    def stage_of(self, unit: Unit) -> str:
        """The stage that a unit is run by."""
        return "embed" if unit[1] == 0 else "head" if unit[1] > self.plan.layers else "block"

    def weights(self, use: int, unit: Unit) -> dict[str, DeviceTensor]:
        """The weights of a use by the engine's names, in place by the time its work begins."""
        return tensors(self.stream.acquire(use), self._layouts[self.stage_of(unit)])

    def bad_weight(self) -> str | None:
        """The first tensor of the files that holds NaN or infinity; they are read once more to find it."""
        found = (name for file in self._files.values() for name in file.tensors if not file.is_finite(name))
        return next(found, None)


def _close(
    device: Device,
    stream: WeightStream,
    staging: Staging,
    memories: dict[Slot, Memory],
    files: dict[str, WeightsFile],
) -> None:
    with device.current():
        stream.stop()
        staging.close()
        for memory in memories.values():
            memory.free()
        for file in files.values():
            file.close()
