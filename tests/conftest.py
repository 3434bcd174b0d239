"""Fixtures shared by test files: one real bundle of the test model, exported once a session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Exported:
    """A finished bundle, the checkpoint it was made from, and what the export said."""

    folder: Path
    checkpoint: Path
    titles: list[str]
    notes: list[str]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """wan-tiny's DiT for the RTX 5090 with random weights. Read-only: a test that exports again works on a copy."""
    for module in ("torch", "triton", "onnx", "onnx_graphsurgeon", "tensorrt_rtx"):
        pytest.importorskip(module)
    from checkpoints import canonical_state_dict, save_safetensors

    from exporter.export import export_bundle
    from exporter.models import model_named
    from exporter.progress import SilentProgress
    from exporter.spec import export_spec

    folder = tmp_path_factory.mktemp("exported")
    checkpoint = save_safetensors(folder / "checkpoint.safetensors", canonical_state_dict(model_named("wan-tiny")))
    report = SilentProgress()
    spec = export_spec(
        model="wan-tiny", gpu="rtx5090", checkpoint=str(checkpoint), out=folder / "engines", components="dit"
    )
    return Exported(export_bundle(spec, report), checkpoint, report.titles, report.notes)


@pytest.fixture(scope="module")
def no_gpu() -> Iterator[None]:
    """torch sees no CUDA device, whatever the machine."""
    torch = pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
