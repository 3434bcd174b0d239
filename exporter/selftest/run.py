"""The whole selftest: what is here, then all parts in their order, in child processes; a JSON file after each row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from exporter.gpus import GPUS, GpuSpec, gpu_named
from exporter.selftest import LIMIT
from exporter.selftest.plan import PARTS, groups, kinds_of
from exporter.selftest.process import Told, run_cases
from exporter.selftest.rows import Case, Host, Machine, Part, Report, Row, located
from exporter.selftest.step import Setting
from plugins.errors import UserError
from plugins.temporary import scratch
from runtime import report as runtime_report
from runtime.atomic import check_place, told, write_atomic
from runtime.versions import own_version

LOOK = 120.0  # seconds for the look around


@dataclass(frozen=True)
class SelftestSpec:
    """What was asked for.

    ``gpu`` None: the one that is here. ``keep``: where bundles stay; ``bundles``: where they are found. ``only``: names
    of parts and variants, all if empty. ``seconds``: the most that a step may take.
    """

    json: Path
    gpu: str | None = None
    keep: Path | None = None
    bundles: Path | None = None
    only: tuple[str, ...] = ()
    quick: bool = False
    seconds: float = LIMIT
    command: str = "turbotrt selftest"


class Selftest:
    """One run. ``report`` fills as it goes, and is on the disk after every row."""

    def __init__(self, spec: SelftestSpec, progress: runtime_report.Report, on_row: Callable[[Row], None]) -> None:
        self._spec, self._progress, self._on_row = spec, progress, on_row
        self._began = time.monotonic()
        began = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.report = Report(version=own_version(), command=spec.command, began=began)
        self._broken: set[str] = set()  # variants without a bundle

    def run(self) -> None:
        """All of it. Raises UserError where nothing can be tested; on Ctrl-C the file holds what was found so far."""
        kinds_of(self._spec.only)
        check_place(self._spec.json)
        try:
            with self._folder() as folder:
                self._run(folder)
            self.report.ended = "finished"
        except KeyboardInterrupt:
            self.report.ended = "interrupted"
            raise
        finally:
            if self.report.ended == "running":
                self.report.ended = "stopped"
            self._write()

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where the bundles lie."""
        if self._spec.keep is not None:
            self._spec.keep.mkdir(parents=True, exist_ok=True)
        given = self._spec.bundles or self._spec.keep
        with scratch() if given is None else nullcontext(given) as folder:
            yield folder

    def _run(self, folder: Path) -> None:
        spec = self._spec
        looking = Setting(folder=str(folder), gpu=next(iter(GPUS)))
        self._cases(looking, [Case(part="machine", variant="")], LOOK)
        gpu = self._target()
        hosts = self._hosts(gpu)
        setting = Setting(
            folder=str(folder),
            gpu=gpu.name,
            onnx_only=not self._builds(gpu),
            found=spec.bundles is not None,
            quick=spec.quick,
        )
        self.report.gpu = gpu.name
        for group in groups(spec.only, hosts, quick=spec.quick, embeds=self._embeds(gpu)):
            if self._without_torch(group[0].part):
                self._row(Row(part=group[0].part, variant="", host=group[0].host, name="needs torch", status="skipped"))
            else:
                self._cases(setting, group, spec.seconds)

    def _target(self) -> GpuSpec:
        """The GPU that bundles are for. Raises UserError where there is none and none was named."""
        machine = self.report.machine
        if self._spec.gpu is not None:
            return gpu_named(self._spec.gpu)
        if machine is None:
            raise UserError(
                "The process that looks for a GPU did not come to an end.",
                got="\n".join(row.detail for row in self.report.failed),
                remedy="see that nvidia-smi works",
            )
        if machine.sm is None or machine.gpu is None:
            raise UserError(
                "The selftest needs the GPU that is to be tested, and there is none here.",
                expected="a CUDA GPU of the table (turbotrt list) and its driver",
                got=machine.why_not,
                remedy="run it there. What needs no GPU can be tried here, and taken there: turbotrt selftest "
                "--gpu rtx5090 --keep DIR, then turbotrt selftest --bundles DIR",
            )
        if not machine.exports:
            raise UserError(
                f"There are no kernels for {machine.gpu}.",
                expected="one of " + ", ".join(sorted({f"sm_{gpu.sm}" for gpu in GPUS.values()})),
                got=f"sm_{machine.sm}",
            )
        gpu = gpu_named(machine.exports[0])
        if machine.gpu.removeprefix("NVIDIA ") != gpu.product:
            self._note(f"{machine.gpu} is tested as {gpu.name}, of the same SM; estimates are for {gpu.product}.")
        return gpu

    def _hosts(self, gpu: GpuSpec) -> tuple[Host, ...]:
        """Who runs our ops: none where this GPU's bundles can only be made here."""
        machine, package = self.report.machine, gpu.flavour.replace("_", "-")
        if machine is None or machine.sm != gpu.sm:
            self._note(f"There is no {gpu.product} here: bundles are made, and nothing is run.")
            return ()
        if package in machine.packages:
            self.report.backend = "tensorrt"
            if machine.plugin_library is not None:
                return ("python", "library")
            self._note("The C++ plugin library is not in this installation: only the Python plugins are tested.")
            return ("python",)
        if "torch" not in machine.packages:
            self._note(f"There is neither {package} nor torch here: nothing is run.")
            return ()
        self.report.backend = "torch"
        self._note(
            f"NO ENGINE IS TESTED: {gpu.product} takes those of {package}, which is not installed. The torch backend "
            "runs the same launch plans in their place."
        )
        return ("torch",)

    def _embeds(self, gpu: GpuSpec) -> bool:
        """Whether engines can get the plugin library, or could where they were made."""
        library = self.report.machine is not None and self.report.machine.plugin_library is not None
        return self._spec.bundles is not None or (library and self._builds(gpu))

    def _without_torch(self, part: Part) -> bool:
        """Whether a part cannot be: what makes bundles or computes what is right needs torch. UserError for bundles."""
        if part in ("generate", "cold", "warm") or (self.report.machine and "torch" in self.report.machine.packages):
            return False
        if part == "export" and self._spec.bundles is None:
            raise UserError(
                "The selftest makes its bundles with torch, which is not installed.",
                remedy="pip install 'turbotrt[export]'; or make them elsewhere, with --gpu and --keep DIR, and take "
                "them by --bundles DIR",
            )
        return part != "export"

    def _builds(self, gpu: GpuSpec) -> bool:
        """Whether engines for this GPU can be built here: TensorRT for RTX needs no GPU for it, TensorRT needs that."""
        machine = self.report.machine
        if machine is None or gpu.flavour.replace("_", "-") not in machine.packages:
            return False
        return gpu.flavour == "tensorrt_rtx" or machine.sm == gpu.sm

    def _note(self, text: str) -> None:
        self.report.notes.append(text)
        self._progress.note(text)

    def _cases(self, setting: Setting, cases: Sequence[Case], seconds: float) -> None:
        """Run a group; what lacks its bundle is left out, and says so."""
        ready = [case for case in cases if case.variant not in self._broken]
        for case in cases:
            if case not in ready:
                why = "there is no bundle"
                self._row(Row(part=case.part, variant=case.variant, host=case.host, name=why, status="skipped"))
        if not ready:
            return
        with ExitStack() as shown:
            at: list[str] = []

            def step(case: Case, name: str) -> None:
                if at != [case.variant]:
                    at[:] = [case.variant]
                    shown.close()
                    shown.enter_context(self._progress.stage(_title(case)))

            run_cases(setting, ready, seconds, Told(self._row, step, self._machine))

    def _machine(self, machine: Machine) -> None:
        self.report.machine = machine

    def _row(self, row: Row) -> None:
        row = located(row, self.report.rows)
        self.report.rows.append(row)
        if row.part == "export" and row.status != "passed":
            self._broken.add(row.variant)
        self._write()
        self._on_row(row)

    def _write(self) -> None:
        if self.report.gpu is None and not self.report.failed:  # nothing was tested yet
            return
        self.report.seconds = time.monotonic() - self._began
        with told(self._spec.json):
            write_atomic(self._spec.json, self.report.json())


def _title(case: Case) -> str:
    """What is being done, as progress says it."""
    said = PARTS[case.part] + (f" of {case.variant}" if case.variant else "")
    return said + (f", ops by {case.host}" if case.host else "")
