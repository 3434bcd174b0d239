"""turbotrt compare on a CUDA GPU: compiled plans take part, and the sweep is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("polygraphy")
pytest.importorskip("matplotlib")

from conftest import Exported  # noqa: E402

from exporter.compare.run import compare  # noqa: E402
from exporter.compare.spec import CompareSpec  # noqa: E402
from exporter.progress import SilentProgress  # noqa: E402

pytestmark = pytest.mark.gpu


def test_plans_take_part(exported: Exported, tmp_path: Path) -> None:
    spec = CompareSpec(
        exported.folder,
        str(exported.checkpoint),
        against=("fp32", "quantized", "plans"),
        steps=2,
        size=(256, 160),
        sweep=(100, 500),
        out=tmp_path / "report",
    )
    found = compare(spec, SilentProgress())
    assert found.offenders == []
    ops = [row for row in found.rows if row.level == "op" and row.candidate == "plans"]
    assert {row.layer for row in ops} == {0, 1}
    assert any(row.value > 0 for row in ops), "kernels do not sum in the oracle's order"
    assert all(row.bound is not None and row.bound > 1e-6 for row in ops)
    assert found.sweep is not None
    assert not found.sweep.estimated
    assert all(point.seconds is not None and point.seconds > 0 for point in found.sweep.points)
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor != 120:
        assert any("compiled for sm_" in note for note in found.notes)
