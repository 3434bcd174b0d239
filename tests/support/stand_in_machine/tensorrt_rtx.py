"""Found in place of the real ``tensorrt_rtx`` by a process whose path begins with this folder; see stand_in_rtx.py."""

import importlib
import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)
sys.path.remove(_HERE)
del sys.modules[__name__]
importlib.import_module(__name__)  # the real one, for those that stand in for its engines
sys.path.insert(0, _HERE)

from tests.support.stand_in_rtx import StandInRtx

sys.modules[__name__] = StandInRtx()  # type: ignore[assignment]
