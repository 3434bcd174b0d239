"""A bundle opened on one device: what all parts of a video pipeline share."""

from __future__ import annotations

from pathlib import Path

from plugins.errors import UserError
from runtime.backends.kind import BackendKind
from runtime.backends.protocol import Runner
from runtime.bundle import Manifest, MediaComponent
from runtime.checks import check_size
from runtime.file_checks import FileChecks, Verify
from runtime.layout import weight_layout
from runtime.media.parts.times import Part
from runtime.pipeline import RESERVE
from runtime.report import Report
from runtime.weights.file import WeightsFile
from runtime.weights.host import HostWeights
from runtime.weights.upload import Staging


class OpenBundle:
    """Its device and files are opened when they are first used, and closed by ``close``, once.

    ``times``: what each part took, in order, in the call that is running or was last. ``host_limit``: bytes of
    page-locked memory in which weights may wait.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        kind: BackendKind,
        *,
        vram: int | None,
        host_limit: int,
        verify: Verify,
        report: Report,
    ) -> None:
        """``vram``: the most bytes of device memory to use, None for what is free when the device is opened."""
        self.folder, self.manifest, self.kind = folder, manifest, kind
        self.host_limit, self.report = host_limit, report
        self.checks = FileChecks(folder, manifest, verify, report)
        self.times: list[Part] = []
        self._vram, self._runner, self._staging = vram, list[Runner](), list[Staging]()
        self._files: dict[MediaComponent, WeightsFile] = {}
        self._kept: dict[str, HostWeights] = {}

    @property
    def runner(self) -> Runner:
        """What runs the stages of all parts. Raises UserError where it cannot be opened."""
        if not self._runner:
            if (reason := self.kind.check(self.folder, self.manifest)) is not None:
                raise UserError(reason)
            self._runner.append(self.kind.open(self.folder, self.manifest, self.report))
        return self._runner[0]

    @property
    def staging(self) -> Staging:
        """The one way of all weights to the device."""
        if not self._staging:
            stages = (stage for stage in self.manifest.stages if stage.expert is None)
            largest = max(weight_layout(stage).nbytes for stage in stages)
            self._staging.append(Staging(self.runner.device, largest))
        return self._staging[0]

    @property
    def budget(self) -> int | None:
        """Bytes of device memory at most; None where it is the host's own and nobody set a limit."""
        if self._vram is None:
            with self.runner.device.current():
                free = self.runner.device.free_bytes()
            self._vram = None if free is None else free - RESERVE
        return self._vram

    @property
    def left(self) -> int | None:
        """The budget less what running takes besides stages' own memory."""
        return None if self.budget is None else max(0, self.budget - self.runner.overhead_bytes)

    def kept(self, part: str) -> HostWeights:
        """The page-locked memory in which a part's weights may wait; whoever plans sets its limit."""
        if part not in self._kept:
            self._kept[part] = HostWeights(self.runner.device, 0)
        return self._kept[part]

    def weights(self, component: MediaComponent) -> WeightsFile:
        """The weights of text encoder or VAE, opened once. Raises UserError."""
        if component not in self._files:
            name = self.manifest.media_weights.get(component)
            if name is None:
                option = {"text": "--text-encoder", "vae": "--vae", "tiny": "--vae-decoder tiny --tiny-vae"}[component]
                raise UserError(
                    f"The bundle has no weights of the component {component}.",
                    remedy=f"export again with {option} PATH_OR_HF_ID",
                )
            if (reason := check_size(self.folder, self.manifest, name)) is not None:
                raise UserError(reason)
            self._files[component] = WeightsFile(self.folder / name)
        return self._files[component]

    def begin_checks(self, component: MediaComponent) -> None:
        """Compare what a component's stages run, and begin to compare its weights. Raises UserError.

        What is made with them goes out after ``finish_checks``.
        """
        self.checks.begin_open(self.weights(component))
        self.checks.check(self.kind.files(self.manifest, component))

    def finish_checks(self, component: MediaComponent) -> None:
        """Wait for a component's hash. Raises UserError where its weights are not the manifest's."""
        self.checks.finish([self.weights(component).path.name])

    def close(self) -> None:
        """Close files, runner and device; parts must have given their memory back."""
        self.checks.close()
        for file in self._files.values():
            file.close()
        self._files.clear()
        while self._runner:
            runner = self._runner.pop()
            with runner.device.current():
                for kept in self._kept.values():
                    kept.close()
                while self._staging:
                    self._staging.pop().close()
                runner.close()
            runner.device.close()
