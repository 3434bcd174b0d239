"""The VAE's weights on the device: a slot for each half, whose stages all take the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugins.errors import UserError
from runtime.backends.protocol import Device, DeviceTensor
from runtime.bundle import StageEntry
from runtime.layout import weight_layout
from runtime.weights.file import WeightsFile
from runtime.weights.slots import Slots
from runtime.weights.streaming import Kept, Unit
from runtime.weights.upload import Staging, Stored


@dataclass(frozen=True)
class _Places:
    """Every unit in a slot of its own (``runtime.weights.streaming.Places``)."""

    layers: int = 0
    resident: frozenset[int] = frozenset()
    all_experts: bool = False


class VaeWeights:
    """Those of some halves, each named by its stage for chunks after the first.

    They come with ``load``, or when they are first asked for, and stay until ``unload``.
    """

    def __init__(
        self,
        device: Device,
        halves: Sequence[StageEntry],
        file: WeightsFile,
        staging: Staging,
        kept: Kept | None = None,
    ) -> None:
        self._device, self._file, self._staging, self._kept = device, file, staging, kept
        self._layouts = {stage.name: weight_layout(stage) for stage in halves}
        self._uses: list[Unit] = [(file.path.name, unit) for unit in range(len(halves))]
        self._held: list[Slots] = []
        for where in self._layouts.values():
            if problem := file.check("", where):
                raise UserError(f"The weights are not of this bundle: {problem}.", remedy="export with --vae again")

    @property
    def loaded(self) -> bool:
        """Whether they are on the device, or on their way."""
        return bool(self._held)

    def load(self) -> None:
        """Start to bring them, behind what runs."""
        if not self._held:
            places, uses = _Places(), self._uses
            self._held.append(Slots(self._device, self._staging, places, uses, self._find, self._kept))
            self._held[0].begin(uses)

    def unload(self) -> None:
        """Give their memory back."""
        while self._held:
            self._held.pop().close()

    def of(self, stage: StageEntry) -> dict[str, DeviceTensor]:
        """The weights of a half; what is enqueued on compute from now on finds them in place."""
        self.load()
        use = list(self._layouts).index(stage.name)
        return self._held[0].weights(use, self._uses[use])

    def _find(self, unit: Unit) -> Stored:
        return Stored(self._file, "", list(self._layouts.values())[unit[1]])
