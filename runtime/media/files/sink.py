"""What frames go to, whatever the kind of file."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


class FrameSink(Protocol):
    """A context that takes frames uint8 [t, h, w, 3] in order; the result appears whole or not at all."""

    def check(self) -> None:
        """Raise UserError where it cannot be written here; long before there is anything to write."""

    def __enter__(self) -> FrameSink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, frames: Frames) -> None: ...
